# SPDX-License-Identifier: Apache-2.0
"""What shows on a connection is noticed, what does not is found by the proof, and nothing is stale.

Times are a fifth of the defaults; `tests/soak/watches.py` does the same 10,000 times with those.
"""

from __future__ import annotations

import pytest

from tests.cilia.k8s.fault_proxy import Fault
from tests.cilia.k8s.fault_world import FaultWorld, Times

FAST = Times(ping_s=0.25, heartbeat_s=0.75, proof_s=1.0, delay_s=(1.0, 1.5))
TIMES = 2
# A proof waits for what is on its way; a tick of the clock is 0.25 s.
LIMIT_S = {Fault.DROP: FAST.proof_s + 2.0}
VISIBLE_S = FAST.heartbeat_s + 0.75


@pytest.mark.parametrize("fault", Fault)
async def test_fault_is_noticed_in_time_and_leaves_nothing_stale(fault: Fault) -> None:
    async with FaultWorld(1, FAST).running() as world:
        for _ in range(TIMES):
            outcome = await world.inject(fault)
            assert outcome.stale == 0
            assert outcome.noticed_s is not None
            assert outcome.noticed_s < LIMIT_S.get(fault, VISIBLE_S)


async def test_nothing_is_stale_after_a_storm_of_faults() -> None:
    async with FaultWorld(2, FAST).running() as world:
        assert await world.storm(40) == 0

# SPDX-License-Identifier: Apache-2.0
"""What shows on a connection is noticed, what does not is found by the proof, and nothing is stale.

Times are a fifth of the defaults; `tests/soak/watches.py` does the same 10,000 times with those.
"""

from __future__ import annotations

import anyio
import msgspec

from tests.cilia.k8s.fault_proxy import Fault
from tests.cilia.k8s.fault_world import FaultWorld, Times

FAST = Times(ping_s=0.25, heartbeat_s=0.75, proof_s=1.0, delay_s=(1.0, 1.5))
# Nothing but the proof finds an event that is lost.
PROVEN_SOON = msgspec.structs.replace(FAST, proof_s=0.5)
TIMES = 2
# A proof waits for what is on its way; a tick of the clock is 0.25 s.
LIMIT_S = {Fault.DROP: PROVEN_SOON.proof_s + 2.0}
VISIBLE_S = FAST.heartbeat_s + 0.75


async def test_faults_are_noticed_in_time_and_leave_nothing_stale() -> None:
    """Each fault in a world of its own, at once: nearly all of the time is waiting."""
    async with anyio.create_task_group() as group:
        for fault in Fault:
            group.start_soon(check_fault, fault)


async def check_fault(fault: Fault) -> None:
    times = PROVEN_SOON if fault is Fault.DROP else FAST
    async with FaultWorld(1, times).running() as world:
        for _ in range(TIMES):
            outcome = await world.inject(fault)
            assert outcome.stale == 0, fault
            assert outcome.noticed_s is not None, fault
            assert outcome.noticed_s < LIMIT_S.get(fault, VISIBLE_S), fault


async def test_nothing_is_stale_after_a_storm_of_faults() -> None:
    async with FaultWorld(2, FAST).running() as world:
        assert await world.storm(40) == 0

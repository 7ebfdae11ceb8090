# SPDX-License-Identifier: Apache-2.0
"""The verifier takes each program with what may be on at once, also that of an older kernel.

Verifiers differ: that of Linux 6.1 counts the frames of a chain of calls in larger steps, and
refused programs that Linux 6.18 loads. So CI runs this file there (`make test-loads`).
"""

from __future__ import annotations

from typing import Final

import pytest

from bpf.maps.lb_numbers import Algorithm
from tests.bpf.datapath_world import loaded

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

OBJECTS: Final = ("lxc", "host", "xdp")
ON: Final = bytes([1])

#: All that adds instructions, or frames on the stack.
ALL: Final = {
    "pod_network": ON,
    "masquerade4": ON,
    "masquerade6": ON,
    "nodeport_dsr": ON,
    "trace_notifications": ON,
    "ct_accounting": ON,
    "monitor_aggregation": bytes(4),  # none: traces where packets enter, too
    "lb_algorithm": int(Algorithm.MAGLEV).to_bytes(4, "little"),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(
    "constants",
    [
        {},
        {"pod_network": ON, "masquerade4": ON, "masquerade6": ON},
        {**ALL, "nodeport_dispatch": bytes([0])},
        {**ALL, "nodeport_dispatch": bytes([1])},
    ],
    ids=["nothing", "pods", "all with opt", "all with ipip"],
)
def test_programs_load(name: str, constants: dict[str, bytes]) -> None:
    with loaded([name], constants) as datapath:
        assert datapath.programs

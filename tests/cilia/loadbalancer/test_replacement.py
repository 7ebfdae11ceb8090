# SPDX-License-Identifier: Apache-2.0
"""The states of the replacement of kube-proxy, and who ends a take-over."""

from __future__ import annotations

import errno

import pytest

from bpf.maps.ct import TCP_FIN, TCP_RST, CtEntry, is_over
from bpf.maps.lb import LBMaps
from bpf.maps.switch import SwitchState
from cilia.datapath.opening import MemoryDatapath
from cilia.linux.errors import NetlinkError
from cilia.loadbalancer.replacement import Replacement
from tests.cilia.loadbalancer.world import World

ACK = 0x10


def replacement(state: SwitchState, others: set[int] | NetlinkError) -> Replacement:
    """With one Service at port 80."""
    world = World()
    world.upsert("shop", "10.0.0.1:80/TCP")
    datapath = MemoryDatapath(LBMaps.fake(64))
    datapath.switch.state = state

    def look() -> set[int]:
        if isinstance(others, NetlinkError):
            raise others
        return others

    return Replacement(datapath, world.tables.frontends, world.db, look)


@pytest.mark.parametrize(
    ("others", "then"),
    [
        (set(), SwitchState.SERVE),
        ({8080, 443}, SwitchState.SERVE),
        ({8080, 80}, SwitchState.TAKE_OVER),
        (NetlinkError(errno.EPERM, "look"), SwitchState.TAKE_OVER),
    ],
    ids=["nobody", "other-ports", "a-service", "unknown"],
)
def test_take_over_ends_when_nobody_else_has_connections_of_services(
    others: set[int] | NetlinkError, then: SwitchState
) -> None:
    made = replacement(SwitchState.TAKE_OVER, others)
    made.finish()
    assert made.state is then


@pytest.mark.parametrize("before", list(SwitchState))
def test_turns_are_idempotent_and_a_return_is_a_take_over(before: SwitchState) -> None:
    made = replacement(before, set())
    made.turn(True)
    hand_back = before is SwitchState.HAND_BACK
    assert made.state is (SwitchState.TAKE_OVER if hand_back else before)
    for _ in range(2):
        made.turn(False)
        assert made.state is SwitchState.HAND_BACK


@pytest.mark.parametrize(
    ("expires_s", "opener", "other", "over"),
    [
        (100, ACK, ACK, False),
        (100, ACK | TCP_FIN, ACK, False),
        (100, ACK | TCP_FIN, ACK | TCP_FIN, True),
        (100, ACK, TCP_RST, True),
        (99, ACK, ACK, True),
    ],
)
def test_connection_is_over_when_both_sides_ended_or_one_reset_or_its_time_passed(
    expires_s: int, opener: int, other: int, over: bool
) -> None:
    entry = CtEntry(rev_nat=1, expires_s=expires_s, tcp_flags=opener, reply_tcp_flags=other)
    assert is_over(entry, 100) is over

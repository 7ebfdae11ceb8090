# SPDX-License-Identifier: Apache-2.0
"""Rows that do not fit a map are refused before anything of them is written."""

from __future__ import annotations

from bpf.maps.fake import FakeMap
from reconcilers.maps.staged import NoRoomError, Phase, Plan, StagedMap, admit, write

PHASES = tuple(Phase)


def staged(room: int) -> StagedMap:
    return StagedMap(FakeMap("small", 1, 1, room))


def plan(target: StagedMap, slots: str, master: str) -> Plan:
    made = Plan()
    for key in slots:
        made.put(Phase.SLOT, target, key.encode(), b"s")
    made.put(Phase.MASTER, target, master.encode(), b"m")
    return made


def test_the_first_that_fit_are_written_and_the_others_write_nothing() -> None:
    target = staged(5)
    plans = [plan(target, "ab", "A"), plan(target, "cd", "C"), plan(target, "e", "E")]
    admit(plans, [target])
    write(plans, PHASES)
    assert [type(p.error) for p in plans] == [type(None), NoRoomError, type(None)]
    assert sorted(dict(target.raw.items())) == [b"A", b"E", b"a", b"b", b"e"]
    assert "small is full: it has room for 5 entries" in str(plans[1].error)


def test_an_entry_that_two_rows_share_counts_once() -> None:
    target = staged(3)
    plans = [plan(target, "s", "A"), plan(target, "s", "B")]
    admit(plans, [target])
    assert [p.error for p in plans] == [None, None]


def test_what_replaces_an_entry_needs_no_room() -> None:
    target = staged(2)
    first = plan(target, "s", "A")
    write([first], PHASES)
    again = Plan()
    again.put(Phase.MASTER, target, b"A", b"x")
    refused = plan(target, "t", "B")
    admit([refused, again], [target])
    assert isinstance(refused.error, NoRoomError)
    assert again.error is None

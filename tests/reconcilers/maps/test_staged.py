# SPDX-License-Identifier: Apache-2.0
"""Staged writes: differences, phases, and what a failed key holds up."""

from __future__ import annotations

import errno
from collections.abc import Callable

from bpf.errors import kernel_error
from bpf.maps.fake import FakeMap, FaultyMap
from reconcilers.maps.staged import Phase, Plan, StagedMap, write


class Failing(FaultyMap):
    """Refuses chosen keys."""

    def __init__(self, target: FakeMap) -> None:
        self.target = target
        self.refused: set[bytes] = set()

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        self._maybe_refuse(key)
        self.target.update(key, value, flags)

    def delete(self, key: bytes) -> None:
        self._maybe_refuse(key)
        self.target.delete(key)

    def _maybe_refuse(self, key: bytes) -> None:
        if key in self.refused:
            raise kernel_error("refused", errno.ENOMEM)


def staged() -> tuple[StagedMap, Failing, FakeMap]:
    fake = FakeMap("fake", 1, 1)
    failing = Failing(fake)
    return StagedMap(failing), failing, fake


def plan_of(*steps: Callable[[Plan], None]) -> Plan:
    plan = Plan()
    for step in steps:
        step(plan)
    return plan


def put(target: StagedMap, key: bytes, value: bytes, phase: Phase) -> Callable[[Plan], None]:
    return lambda plan: plan.put(phase, target, key, value)


def remove(target: StagedMap, key: bytes, phase: Phase) -> Callable[[Plan], None]:
    return lambda plan: plan.remove(phase, target, key)


def test_all_but_the_refused_keys_of_a_batch_are_written() -> None:
    target, failing, fake = staged()
    failing.refused = {b"b", b"d"}
    plans = [plan_of(put(target, key, b"1", Phase.SLOT)) for key in (b"a", b"b", b"c", b"d", b"e")]
    write(plans, Phase)
    assert dict(fake.items()) == {b"a": b"1", b"c": b"1", b"e": b"1"}
    assert [plan.error is None for plan in plans] == [True, False, True, False, True]
    assert target.content == dict(fake.items())
    assert target.wanted == {b"b": b"1", b"d": b"1"}


def test_all_but_the_refused_keys_of_a_batch_are_deleted() -> None:
    target, failing, fake = staged()
    for key in (b"a", b"b", b"c"):
        fake.update(key, b"1")
    target.load()
    failing.refused = {b"b"}
    plans = [plan_of(remove(target, key, Phase.SLOT_GONE)) for key in (b"a", b"b", b"c")]
    write(plans, Phase)
    assert dict(fake.items()) == {b"b": b"1"}
    assert [plan.error is None for plan in plans] == [True, False, True]
    assert plans[1].outstanding() == [(Phase.SLOT_GONE, (target, b"b"))]


def test_later_phases_of_a_failed_plan_are_left_out() -> None:
    target, failing, fake = staged()
    fake.update(b"o", b"1")
    target.load()
    failing.refused = {b"a"}
    plan = plan_of(
        put(target, b"a", b"1", Phase.BACKEND),
        put(target, b"m", b"1", Phase.MASTER),
        remove(target, b"o", Phase.SLOT_GONE),
    )
    write([plan], Phase)
    assert dict(fake.items()) == {b"o": b"1"}
    assert [phase for phase, _ in plan.outstanding()] == [
        Phase.BACKEND,
        Phase.MASTER,
        Phase.SLOT_GONE,
    ]


def test_plan_fails_with_a_key_that_another_plan_wants_too() -> None:
    target, failing, fake = staged()
    failing.refused = {b"a"}
    plans = [
        plan_of(put(target, b"a", b"1", Phase.BACKEND), put(target, master, b"1", Phase.MASTER))
        for master in (b"m", b"n")
    ]
    write(plans, Phase)
    assert dict(fake.items()) == {}
    assert all(plan.error is not None for plan in plans)


def test_last_plan_decides_when_two_differ() -> None:
    target, _, fake = staged()
    fake.update(b"a", b"0")
    target.load()
    write(
        [
            plan_of(remove(target, b"a", Phase.MASTER_GONE)),
            plan_of(put(target, b"a", b"1", Phase.MASTER)),
            plan_of(put(target, b"b", b"1", Phase.MASTER)),
            plan_of(remove(target, b"b", Phase.MASTER_GONE)),
        ],
        Phase,
    )
    assert dict(fake.items()) == {b"a": b"1"}


def test_resumed_removal_spares_a_key_that_is_wanted_again() -> None:
    target, failing, fake = staged()
    fake.update(b"a", b"0")
    fake.update(b"b", b"0")
    target.load()
    failing.refused = {b"a", b"b"}
    failed = plan_of(
        remove(target, b"a", Phase.SLOT_GONE),
        remove(target, b"b", Phase.SLOT_GONE),
    )
    write([failed], Phase)
    failing.refused = set()
    again = Plan()
    again.resume(failed.outstanding())
    again.put(Phase.SLOT, target, b"a", b"2")
    write([again], Phase)
    assert dict(fake.items()) == {b"a": b"2"}


def test_outstanding_writes_survive_a_refresh_where_the_map_still_differs() -> None:
    target, failing, fake = staged()
    failing.refused = {b"a", b"b"}
    write([plan_of(put(target, key, b"1", Phase.SLOT)) for key in (b"a", b"b")], Phase)
    fake.update(b"b", b"1")
    target.refresh()
    assert target.wanted == {b"a": b"1"}
    assert target.content == {b"b": b"1"}


def test_entry_of_the_map_is_claimed_by_who_puts_it_or_removes_it() -> None:
    target, failing, fake = staged()
    for key in (b"a", b"b", b"c", b"d"):
        fake.update(key, b"1")
    target.load()
    failing.refused = {b"c"}
    write(
        [
            plan_of(put(target, b"a", b"1", Phase.SLOT)),
            plan_of(remove(target, b"b", Phase.SLOT_GONE)),
            plan_of(remove(target, b"c", Phase.SLOT_GONE)),
        ],
        Phase,
    )
    assert target.unclaimed == {b"c", b"d"}


def test_what_others_wrote_is_unclaimed_after_a_refresh() -> None:
    target, _, fake = staged()
    fake.update(b"a", b"1")
    target.load()
    write([plan_of(put(target, b"b", b"1", Phase.SLOT))], Phase)
    fake.update(b"c", b"1")
    target.refresh()
    assert target.unclaimed == {b"a", b"c"}

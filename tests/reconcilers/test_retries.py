# SPDX-License-Identifier: Apache-2.0
"""The backoff queue, alone and against a naive model."""

import random

from hypothesis import given
from hypothesis import strategies as st

from reconcilers.retries import Retries

FAILURE = "no"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, jitter: float = 0.0) -> Retries[str]:
    return Retries(1.0, 8.0, jitter, clock, random.Random(1))


def test_wait_doubles_up_to_the_maximum_when_an_object_keeps_failing() -> None:
    clock = Clock()
    retries = make(clock)
    waits = []
    for _ in range(6):
        retries.add("a", "obj", 5, False, FAILURE)
        due = retries.next_due()
        assert due is not None
        waits.append(due - clock.now)
        clock.now = due
        assert [item.key for item in retries.take_due(10)] == ["a"]
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_backoff_starts_anew_when_the_object_was_cleared() -> None:
    clock = Clock()
    retries = make(clock)
    retries.add("a", "obj", 5, False, FAILURE)
    retries.add("a", "obj", 5, False, FAILURE)
    retries.clear("a")
    assert len(retries) == 0
    assert retries.next_due() is None
    retries.add("a", "obj", 6, False, FAILURE)
    assert retries.next_due() == clock.now + 1.0


def test_backoff_is_per_object() -> None:
    clock = Clock()
    retries = make(clock)
    for _ in range(4):
        retries.add("old", "obj", 1, False, FAILURE)
    retries.add("new", "obj", 2, False, FAILURE)
    clock.now += 1.0
    assert [item.key for item in retries.take_due(10)] == ["new"]


def test_jitter_only_shortens_when_it_is_set() -> None:
    clock = Clock()
    retries = make(clock, jitter=0.5)
    for number in range(200):
        retries.add(str(number), "obj", number, False, FAILURE)
    dues = [item.due - clock.now for item in retries if item.due is not None]
    assert len(dues) == 200
    assert all(0.5 <= due <= 1.0 for due in dues)
    assert max(dues) - min(dues) > 0.3


def test_nothing_is_due_before_its_time() -> None:
    clock = Clock()
    retries = make(clock)
    retries.add("a", "obj", 5, False, FAILURE)
    clock.now += 0.999
    assert retries.take_due(10) == []


def test_item_is_not_taken_twice_while_its_attempt_is_under_way() -> None:
    clock = Clock()
    retries = make(clock)
    retries.add("a", "obj", 5, False, FAILURE)
    clock.now += 1.0
    assert len(retries.take_due(10)) == 1
    assert retries.take_due(10) == []
    assert "a" in retries


def test_low_watermark_is_the_first_revision_that_failed_when_it_fails_again_later() -> None:
    retries = make(Clock())
    retries.add("a", "obj", 7, False, FAILURE)
    retries.add("b", "obj", 9, False, FAILURE)
    retries.add("a", "obj", 12, False, FAILURE)
    assert retries.low_watermark() == 7
    retries.clear("a")
    assert retries.low_watermark() == 9
    retries.clear("b")
    assert retries.low_watermark() is None


def test_failed_delete_takes_the_place_of_a_failed_update() -> None:
    clock = Clock()
    retries = make(clock)
    for _ in range(5):
        retries.add("a", "obj", 7, False, FAILURE)
    retries.add("a", "obj", 8, True, FAILURE)
    assert retries.next_due() == clock.now + 1.0
    assert [item.deleted for item in retries] == [True]
    assert retries.low_watermark() == 8


def test_heaps_stay_small_when_items_come_and_go() -> None:
    retries = make(Clock())
    retries.add("stuck", "obj", 1, False, FAILURE)
    for number in range(10_000):
        retries.add("a", "obj", number + 2, False, FAILURE)
        retries.clear("a")
    assert len(retries._by_due) < 100
    assert len(retries._by_revision) < 100
    assert retries.low_watermark() == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "clear", "take", "wait"]),
        st.integers(0, 5),
        st.integers(1, 50),
    ),
    max_size=60,
)


@given(STEPS)
def test_queue_equals_a_naive_model(steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    retries = make(clock)
    model: dict[int, list[float]] = {}  # key -> [due or inf, attempts, first revision]
    for action, key, number in steps:
        if action == "add":
            _, attempts, first = model.get(key, [0.0, 0, number])
            model[key] = [clock.now + min(2.0**attempts, 8.0), attempts + 1, first]
            retries.add(key, "obj", number, False, FAILURE)
        elif action == "clear":
            model.pop(key, None)
            retries.clear(key)
        elif action == "wait":
            clock.now += number / 10
        else:
            due = sorted(item[0] for item in model.values() if item[0] <= clock.now)[: number % 4]
            taken = retries.take_due(number % 4)
            taken_dues = sorted(model[item.key][0] for item in taken)
            assert taken_dues == due
            for item in taken:
                model[item.key][0] = float("inf")
        waiting = [item[0] for item in model.values() if item[0] != float("inf")]
        assert retries.next_due() == min(waiting, default=None)
        assert retries.low_watermark() == min((item[2] for item in model.values()), default=None)
        assert {item.key for item in retries} == set(model)

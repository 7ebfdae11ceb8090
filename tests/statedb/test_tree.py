# SPDX-License-Identifier: Apache-2.0
"""The ordered view, and what is made of it: order, patches, ranges, persistent map and set."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statedb import Map, Set
from statedb._tree import ABSENT, LEAF, View, build, patch

Keys = st.one_of(
    st.dictionaries(st.integers(), st.integers(), max_size=60),
    st.dictionaries(st.text(alphabet="ab\x00\U0010ffff", max_size=5), st.integers(), max_size=60),
    st.dictionaries(st.binary(max_size=4), st.integers(), max_size=60),
    st.dictionaries(st.tuples(st.text("ab", max_size=2), st.integers(0, 3)), st.integers()),
)


def view_of(model: dict[Any, Any]) -> View:
    keys = sorted(model)
    return View(0, build(keys, [model[key] for key in keys]), [], 0)


@settings(deadline=None)
@given(Keys)
def test_order_is_value_order_and_bounds_agree_with_sorting(model: dict[Any, int]) -> None:
    view = view_of(model)
    view.check()
    assert list(view.keys()) == sorted(model)
    for bound in model:
        expected = [model[key] for key in sorted(model) if key >= bound]
        assert list(view.from_key(bound)) == expected


@settings(deadline=None)
@given(Keys)
def test_prefix_finds_exactly_the_keys_that_begin_with_it(model: dict[Any, int]) -> None:
    sample: Any = next(iter(model), 0)
    if isinstance(sample, int):
        return
    view = view_of(model)
    for key in [*model, sample[:0]]:
        for length in range(len(key) + 1):
            prefix = key[:length]
            expected = [model[k] for k in sorted(model) if k[:length] == prefix]
            found = view.starting_with(prefix, lambda k, n=length: k[:n])  # type: ignore[misc]
            assert list(found) == expected


@pytest.mark.parametrize("size", [0, 1, 2 * LEAF, 10_000, 40_000])
def test_patched_view_equals_the_model_when_many_keys_come_and_go(size: int) -> None:
    chosen = random.Random(size)
    model: dict[int, Any] = {chosen.randrange(10 * size): n for n in range(size)}
    view = view_of(model)
    for count in (1, 10, LEAF, 500, size // 2 + 1, 3 * size + 300):
        changes: dict[int, Any] = {}
        for key in chosen.sample(sorted(model), min(count // 2, len(model))):
            changes[key] = ABSENT
        for _ in range(count):
            changes[chosen.randrange(10 * size + 10)] = chosen.random()
        before = list(view.keys())
        patched = View(1, patch(view.nodes, sorted(changes.items())), [], 0)
        patched.check()
        assert list(view.keys()) == before
        model.update(changes)
        model = {key: value for key, value in model.items() if value is not ABSENT}
        assert list(zip(patched.keys(), patched.objects(), strict=True)) == sorted(model.items())
        for bound in chosen.sample(range(10 * size + 10), 5):
            expected = [model[key] for key in sorted(model) if key >= bound]
            assert list(patched.from_key(bound)) == expected
        view = patched


def test_patch_of_all_keys_away_leaves_nothing() -> None:
    view = view_of(dict.fromkeys(range(1000)))
    assert patch(view.nodes, [(key, ABSENT) for key in range(1000)]) == []
    assert patch([], [(1, ABSENT)]) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=300))
def test_map_and_set_follow_their_models_when_changed(steps: list[tuple[bool, int]]) -> None:
    map_: Map[int, str] = Map()
    set_: Set[int] = Set()
    model: dict[int, str] = {}
    for adding, key in steps:
        kept, kept_model = map_, dict(model)
        if adding:
            map_, set_ = map_.set(key, str(key)), set_.add(key)
            model[key] = str(key)
        else:
            map_, set_ = map_.delete(key), set_.discard(key)
            model.pop(key, None)
        assert dict(kept.items()) == kept_model
    assert list(map_.items()) == sorted(model.items())
    assert list(set_) == sorted(model)
    assert len(map_) == len(set_) == len(model)
    assert map_ == Map(model)
    assert hash(map_) == hash(Map(model))
    assert set_ == Set(model)
    assert hash(set_) == hash(Set(model))
    assert [key in set_ for key in range(300)] == [key in model for key in range(300)]


def test_map_reads_like_a_mapping() -> None:
    map_ = Map([("b", 2), ("a", 1)])
    assert map_["a"] == 1
    assert map_.get("c") is None
    assert map_.get("c", 3) == 3
    assert list(map_) == list(map_.keys()) == ["a", "b"]
    assert list(map_.values()) == [1, 2]
    assert list(map_.lower_bound("b")) == [2]
    assert map_.update({"c": 3, "a": 0}) == Map({"a": 0, "b": 2, "c": 3})
    assert map_.delete("z") is map_
    assert map_ != Map({"a": 1})
    assert map_ != {"a": 1, "b": 2}
    with pytest.raises(KeyError):
        map_["z"]


def test_set_has_the_operators_of_sets() -> None:
    assert Set("abc") & Set("bcd") == Set("bc")
    assert Set("abc") - Set("b") == Set("ac")
    assert Set("a").add("a") == Set("a")
    assert Set("a") != {"a"}

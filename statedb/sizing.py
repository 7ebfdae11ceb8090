# SPDX-License-Identifier: Apache-2.0
"""How many bytes a table holds, as an estimate beside its budget.

Nothing is counted while writing: a few objects are measured when someone asks, and the mean is
multiplied. A table over its budget is reported and keeps all its objects.
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any, Final

import msgspec

from statedb._store import Snap, Store

_SAMPLE: Final = 64
_ROW_BYTES: Final = 64 + 16 + 104
"""A row (64), its place in the log with growth (16) and in the dictionary (104), measured on
CPython 3.11.
"""
_ENTRY_BYTES: Final = 104
_DEPTH: Final = 8


class Usage(msgspec.Struct, frozen=True):
    """The estimated size of a table."""

    objects: int
    bytes: int
    budget_bytes: int | None

    @property
    def over_budget(self) -> bool:
        """Whether the estimate is above the budget."""
        return self.budget_bytes is not None and self.bytes > self.budget_bytes


def measure(store: Store, snap: Snap, budget_bytes: int | None) -> Usage:
    """Estimate from a sample of objects, spread over the newest rows; superseded rows of the log
    count too.
    """
    objects = snap.count
    rows = len(store.rows)
    every = max(rows // _SAMPLE, 1)
    sample = [row.obj for row in islice(list(store.rows.values()), 0, None, every)]
    seen: set[int] = set()
    mean = sum(size_of(obj, seen) for obj in sample) / len(sample) if sample else 0.0
    entries = sum(len(second.entries) for second in store.secondaries)
    total = max(rows, store.log_len)
    used = int(total * (mean + _ROW_BYTES)) + entries * _ENTRY_BYTES
    return Usage(objects, used, budget_bytes)


def size_of(obj: Any, seen: set[int], depth: int = _DEPTH) -> int:
    """Return the bytes of an object and of what it alone refers to; what is in `seen` counts as
    shared.
    """
    if id(obj) in seen or isinstance(obj, type) or callable(obj):
        return 0
    seen.add(id(obj))
    size = sys.getsizeof(obj)
    if depth and not isinstance(obj, (str, bytes, int, float)):
        size += sum(size_of(child, seen, depth - 1) for child in _children(obj))
    return size


def _children(obj: Any) -> list[Any]:
    if isinstance(obj, dict):
        return [*obj.keys(), *obj.values()]
    if isinstance(obj, (list, tuple, set, frozenset)):
        return list(obj)
    if isinstance(obj, msgspec.Struct):
        return [getattr(obj, name) for name in obj.__struct_fields__]
    children = list(vars(obj).values()) if hasattr(obj, "__dict__") else []
    slots = getattr(type(obj), "__slots__", ())
    return children + [getattr(obj, name) for name in slots if hasattr(obj, name)]

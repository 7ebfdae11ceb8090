# SPDX-License-Identifier: Apache-2.0
"""One version of one object.

Versions of a key are chained from newest to oldest by `prev`; a snapshot sees the first one whose
revision is not above its own. A deleted key has a version with `dead` set that carries the last
object.

Compiled by mypyc `Row` is a native class outside the cyclic collector. A native class is slow when
interpreted (135 ns to make one against 52), so that a checkout without compiler uses a msgspec
struct of the same fields.
"""

from __future__ import annotations

from typing import Any, Final

from mypy_extensions import mypyc_attr

COMPILED: Final = not __file__.endswith(".py")
NEVER: Final = -1
"""Older than every revision."""
NEWEST: Final = 1 << 60
"""Newer than every revision: what a write transaction sees."""


@mypyc_attr(acyclic=True)
class Row:
    """One version of the object with this primary key; being acyclic needs `_notrash.h`."""

    def __init__(self, key: Any, obj: Any, rev: int, prev: Row | None, dead: bool) -> None:
        self.key = key
        self.obj = obj
        self.rev = rev
        self.prev = prev
        self.dead = dead


if not COMPILED:
    import msgspec

    globals()["Row"] = msgspec.defstruct(
        "Row", ["key", "obj", "rev", "prev", "dead"], gc=False, weakref=False, module=__name__
    )


def visible(row: Row | None, rev: int) -> Row | None:
    """Return the version that a snapshot of revision `rev` sees, a dead one included."""
    while row is not None and row.rev > rev:
        row = row.prev
    return row


def unlink(row: Row) -> None:
    """Drop all older versions one by one: freeing a long chain by its head would nest as deep."""
    older = row.prev
    row.prev = None
    while older is not None:
        next_older = older.prev
        older.prev = None
        older = next_older

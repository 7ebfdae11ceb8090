# SPDX-License-Identifier: Apache-2.0
"""The entries of one secondary index, which all snapshots of a table share."""

from __future__ import annotations

from typing import Any

from statedb.index import Index
from statedb.lpm import Lengths


class Secondary:
    """The entries of one secondary index: key -> primary key, or a dict of several.

    Entries are a superset of what any live snapshot needs: they are added by writers at once and
    removed only when the row that had them has left every live snapshot.
    """

    def __init__(self, index: Index, position: int) -> None:
        self.index = index
        self.position = position
        self.single: bool = index.key is not None
        self.key: Any = index.key
        self.unique: bool = index.unique
        self.entries: dict[Any, Any] = {}
        self.lengths: Lengths | None = Lengths() if index.is_lpm else None

    def add(self, skey: Any, key: Any) -> None:
        """Note that the object of this primary key has the secondary key."""
        entries = self.entries
        entry = entries.get(skey)
        if entry is None:
            entries[skey] = key
            if self.lengths is not None:
                self.lengths.add(skey)
        elif type(entry) is dict:
            entry[key] = None
        elif entry != key:
            entries[skey] = {entry: None, key: None}

    def remove(self, skey: Any, key: Any) -> None:
        """Forget an entry."""
        entry = self.entries.get(skey)
        if type(entry) is dict:
            entry.pop(key, None)
            if not entry:
                del self.entries[skey]
        elif entry is not None and entry == key:
            del self.entries[skey]

    def candidates(self, skey: Any) -> list[Any]:
        """Return the primary keys, in order, that may have the secondary key."""
        entry = self.entries.get(skey)
        if entry is None:
            return []
        if type(entry) is dict:
            found = list(entry)
            found.sort()
            return found
        return [entry]

    def has(self, obj: Any, skey: Any) -> bool:
        """Whether the object has the secondary key."""
        if self.single:
            return bool(self.key(obj) == skey)
        return skey in self.index.keys_of(obj)

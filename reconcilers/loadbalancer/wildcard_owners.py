# SPDX-License-Identifier: Apache-2.0
"""Which frontends want an entry for their address as a whole, and who of them says what is in it.

Nearly every address has one such frontend, so one owner is kept as itself and only several are a
set.
"""

from tables.addressing import L3n4Addr


class WildcardOwners:
    """Owners by the key of the wildcard entry."""

    def __init__(self) -> None:
        self._owners: dict[bytes, L3n4Addr | set[L3n4Addr]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def keys(self) -> list[bytes]:
        return list(self._owners)

    def add(self, key: bytes, addr: L3n4Addr) -> None:
        """Adding an owner again does nothing."""
        held = self._owners.get(key)
        if held is None:
            self._owners[key] = addr
        elif isinstance(held, set):
            held.add(addr)
        elif held != addr:
            self._owners[key] = {held, addr}

    def remove(self, key: bytes, addr: L3n4Addr) -> bool:
        """Undo `add`; whether the entry still has an owner."""
        held = self._owners[key]
        if isinstance(held, set):
            held.discard(addr)
            if held:
                return True
        del self._owners[key]
        return False

    def first(self, key: bytes) -> L3n4Addr:
        """The lowest owner: frontends of two types agree on its type."""
        held = self._owners[key]
        return min(held) if isinstance(held, set) else held

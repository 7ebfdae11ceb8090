# SPDX-License-Identifier: Apache-2.0
"""What every raw map can do, in the kernel or faked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

#: Flags of ``update``: create or replace; create only; replace only.
ANY = 0
NOEXIST = 1
EXIST = 2


class RawMap(Protocol):
    """Keys and values are bytes of the map's fixed sizes, in the layout of the C struct."""

    @property
    def name(self) -> str: ...

    @property
    def max_entries(self) -> int: ...

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None."""

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Raises: MapFull; Exists with NOEXIST; NotFound with EXIST."""

    def delete(self, key: bytes) -> None:
        """Raises: NotFound."""

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, in no order. An entry that changes meanwhile may be seen or not."""

    def count(self) -> int:
        """Return the number of entries, without reading them."""

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Create or replace many entries in order. Raises: BatchError naming how many were done."""

    def delete_batch(self, keys: Sequence[bytes]) -> None:
        """Delete many entries; a key that is not there is passed over."""

    def clear(self) -> None:
        """Delete every entry."""


class SharedMap(RawMap, Protocol):
    """A hash map whose entries programs make and replace at any time."""

    def delete_unchanged(
        self, entries: Sequence[tuple[bytes, bytes]], part: slice
    ) -> list[tuple[bytes, bytes]]:
        """Delete those of the entries whose `part` of the value is as it was read; return them.

        An entry that was replaced since then stays.
        """

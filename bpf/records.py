# SPDX-License-Identifier: Apache-2.0
"""Records that were read together, as one piece of bytes. Needs no libbpf: commands read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, NamedTuple

__all__ = ["Batch", "records"]

_HEAD: Final = Struct("=II")


def records(raw: bytes) -> Iterator[memoryview]:
    """Return the records of a batch, without a copy."""
    view, at = memoryview(raw), 0
    while at < len(view):
        size, _ = _HEAD.unpack_from(view, at)
        at += _HEAD.size
        yield view[at : at + size]
        at += (size + 7) & ~7


class Batch(NamedTuple):
    """Records that were read together."""

    #: Each record: length (u32), zero (u32), the record, padding to 8 bytes.
    raw: bytes
    size: int

    def records(self) -> Iterator[memoryview]:
        """The records, without a copy."""
        return records(self.raw)

    def only(self, wanted: Callable[[memoryview], bool]) -> Batch:
        """The records that are wanted, as a batch of their own."""
        kept = [record for record in self.records() if wanted(record)]
        return Batch(b"".join(map(_framed, kept)), len(kept))


def _framed(record: memoryview) -> bytes:
    size = len(record)
    return _HEAD.pack(size, 0) + bytes(record) + bytes(-size % 8)

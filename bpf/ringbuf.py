# SPDX-License-Identifier: Apache-2.0
"""Records that programs send, by ring buffer, or by perf buffer where a program needs one.

Records are gathered in C and come as one ``bytes`` a batch, so the cost of a record is that of its
decoding. ``batches`` waits on the buffer's descriptor with anyio; no thread is involved.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio

from bpf.descriptors import Owned
from bpf.libbpf import check, ffi, lib
from bpf.maps.map import Map
from bpf.records import Batch

__all__ = ["BATCH_BYTES", "Batch", "Reader"]

#: A batch ends after about this much, 1-2 thousand events: one burst cannot hold the event loop.
BATCH_BYTES = 256 * 1024


class Reader(Owned):
    """A consumer of one buffer; there must be no other. Not for use from two threads at once."""

    def __init__(self, pointer: Any, name: str) -> None:
        self._pointer = pointer
        self.name = name

    @classmethod
    def ring(cls, ring: Map) -> Reader:
        """Read a ring buffer. The records already in it come first."""
        out = ffi.new("struct cilia_reader **")
        check(lib.cilia_ring_open(ring.number, out), f"open ring buffer {ring.name}")
        return cls(out[0], ring.name)

    @classmethod
    def perf(cls, array: Map, pages_per_cpu: int = 8) -> Reader:
        """Read a perf event array. Its buffers are made here: nothing is kept without a reader."""
        out = ffi.new("struct cilia_reader **")
        rc = lib.cilia_perf_open(array.number, pages_per_cpu, out)
        check(rc, f"open perf buffer {array.name}")
        return cls(out[0], array.name)

    def close(self) -> None:
        """Stop reading; records that come later stay in a ring buffer for the next reader."""
        pointer, self._pointer = getattr(self, "_pointer", None), None
        if pointer is not None:
            lib.cilia_reader_close(pointer)

    @property
    def lost(self) -> int:
        """Records that the kernel (perf buffers) or this reader had no room for, since the start.

        A program that finds a ring buffer full counts for itself: see ``bpf/lib/event.h``.
        """
        return int(self._pointer.lost)

    def fileno(self) -> int:
        """A descriptor that is readable while there are records."""
        return int(lib.cilia_reader_fd(self._pointer))

    def read(self) -> Batch:
        """What is there now, at most about ``BATCH_BYTES``; empty if nothing is."""
        rc = lib.cilia_reader_consume(self._pointer, BATCH_BYTES)
        check(rc, f"read {self.name}")
        size = int(self._pointer.length)
        raw = bytes(ffi.buffer(self._pointer.data, size)) if size else b""
        return Batch(raw, int(self._pointer.records))

    async def batches(self) -> AsyncIterator[Batch]:
        """Batches as they come, for ever. The event loop runs between any two."""
        while True:
            batch = self.read()
            if batch.size:
                yield batch
                await anyio.sleep(0)
            else:
                await anyio.wait_readable(self.fileno())

# SPDX-License-Identifier: Apache-2.0
"""One map in the kernel: keys and values as bytes, one entry or thousands a system call.

Batches: hash, LRU and array maps take many entries in one call since Linux 5.6, other kinds later
or never. Where the kernel says that it cannot (ENOTSUPP), the map falls back to one call an entry,
once and for good. The protocol of a batch lookup is the kernel's: an opaque cursor goes in and out,
ENOENT is the end, ENOSPC means that one hash bucket is larger than the buffer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bpf.descriptors import Fd
from bpf.errors import BatchError, Invalid, KernelError, MapFull, NotFound, Unsupported
from bpf.libbpf import check, decode, ffi, lib, options, possible_cpus
from bpf.maps.raw import ANY
from bpf.maps.types import MapType
from bpf.pins import open_pin, pin, replace

#: Entries read in one call of a whole-map iteration: a few hundred KB of buffer, and calls are no
#: cost any more.
LOOKUP_BATCH = 4096

#: The kernel's cursor is a u32 or a key, whichever is larger; keys are at most 512 bytes.
CURSOR_BYTES = 512

_NOT_SUPPORTED = (Unsupported, Invalid)


class MapInfo(NamedTuple):
    """What the kernel tells about a map."""

    type: MapType | int
    id: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int


def _lookup_size(info: MapInfo) -> int:
    """Bytes that the kernel writes for one value."""
    if isinstance(info.type, MapType) and info.type.is_percpu:
        return cpu_stride(info.value_size) * possible_cpus()
    return info.value_size


def cpu_stride(value_size: int) -> int:
    """Bytes from the value of one CPU to that of the next."""
    return (value_size + 7) & ~7


class Map(Fd):
    """A map held open.

    ``value_size`` is what one lookup returns, asked of the kernel by the kind of map: in per-CPU
    maps that is one value for every possible CPU (``percpu.py`` takes them apart). A buffer for one
    of them would be overrun by the kernel.
    """

    __slots__ = ("_batch", "info", "key_size", "max_entries", "name", "value_size")

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.info = map_info(fd)
        self.name = self.info.name
        self.key_size = self.info.key_size
        self.value_size = _lookup_size(self.info)
        self.max_entries = self.info.max_entries
        self._batch = True

    @classmethod
    def create(
        cls,
        kind: MapType,
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        *,
        flags: int = 0,
        inner: Map | None = None,
    ) -> Map:
        """A new map without a pin; ``inner`` is the model of the maps inside a map of maps.

        Raises: NoPrivilege, NoMemory, Invalid (a kind, size or flag that this kernel refuses).
        """
        opts = options("bpf_map_create_opts", map_flags=flags)
        if inner is not None:
            opts.inner_map_fd = inner.number
        fd = lib.bpf_map_create(kind, name.encode(), key_size, value_size, max_entries, opts)
        return cls(check(fd, f"create map {name}"))

    @classmethod
    def open_pinned(cls, path: Path) -> Map:
        """The map pinned at ``path``. Raises: NotFound."""
        return cls(open_pin(path))

    @classmethod
    def by_id(cls, map_id: int) -> Map:
        """A map by the kernel's number. Raises: NotFound when it is gone."""
        return cls(check(lib.bpf_map_get_fd_by_id(map_id), f"map {map_id}"))

    def duplicate(self) -> Map:
        """The same map under a second descriptor."""
        return Map(os.dup(self.number))

    def pin(self, path: Path) -> None:
        """Pin at a free path. Raises: Exists."""
        pin(self.number, path)

    def replace_pin(self, path: Path) -> None:
        """Pin at ``path`` and atomically take over what is there."""
        replace(self.number, path)

    # -- one entry --

    def lookup(self, key: bytes) -> bytes | None:
        self._check_key(key)
        value = ffi.new("char[]", self.value_size)
        rc = lib.bpf_map_lookup_elem(self.number, key, value)
        if rc == -errno.ENOENT:
            return None
        check(rc, f"look up in {self.name}")
        return bytes(ffi.buffer(value, self.value_size))

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        self._check_key(key)
        self._check_value(value)
        check(lib.bpf_map_update_elem(self.number, key, value, flags), f"update {self.name}")

    def delete(self, key: bytes) -> None:
        self._check_key(key)
        check(lib.bpf_map_delete_elem(self.number, key), f"delete from {self.name}")

    # -- all entries --

    def keys(self) -> Iterator[bytes]:
        """All keys, one call each; a key deleted meanwhile may make the kernel start over."""
        key: Any = ffi.NULL
        while True:
            following = ffi.new("char[]", self.key_size)
            try:
                check(lib.bpf_map_get_next_key(self.number, key, following), f"iterate {self.name}")
            except NotFound:
                return
            yield bytes(ffi.buffer(following, self.key_size))
            key = following

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        if not self._batch:
            yield from self._items_singly()
            return
        read = 0
        try:
            for chunk in self._chunks():
                read += len(chunk)
                yield from chunk
        except _NOT_SUPPORTED:
            if read:
                raise
            self._batch = False
            yield from self._items_singly()

    def count(self) -> int:
        """Return the number of entries; their values are not taken apart."""
        if not self._batch:
            return sum(1 for _ in self.keys())
        read = 0
        try:
            for _, _, count in self._batches():
                read += count
        except _NOT_SUPPORTED:
            if read:
                raise
            self._batch = False
            return sum(1 for _ in self.keys())
        return read

    def _items_singly(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def _chunks(self) -> Iterator[list[tuple[bytes, bytes]]]:
        for keys, values, count in self._batches():
            yield self._split(keys, values, count)

    def _batches(self) -> Iterator[tuple[Any, Any, int]]:
        size = min(LOOKUP_BATCH, max(self.max_entries, 1))
        cursor: Any = ffi.NULL
        following = ffi.new("char[]", CURSOR_BYTES)
        while True:
            keys = ffi.new("char[]", size * self.key_size)
            values = ffi.new("char[]", size * self.value_size)
            count = ffi.new("uint32_t *", size)
            rc = lib.bpf_map_lookup_batch(
                self.number, cursor, following, keys, values, count, ffi.NULL
            )
            error = _error(rc, f"read {self.name}")
            if isinstance(error, MapFull) and not count[0]:
                size *= 2
                continue
            if error is not None and not isinstance(error, NotFound | MapFull):
                check(rc, f"read {self.name}")
            yield keys, values, count[0]
            if isinstance(error, NotFound):
                return
            cursor, following = following, ffi.new("char[]", CURSOR_BYTES)

    def _split(self, keys: Any, values: Any, count: int) -> list[tuple[bytes, bytes]]:
        key_size, value_size = self.key_size, self.value_size
        raw_keys = bytes(ffi.buffer(keys, count * key_size))
        raw_values = bytes(ffi.buffer(values, count * value_size))
        return [
            (
                raw_keys[i * key_size : (i + 1) * key_size],
                raw_values[i * value_size : (i + 1) * value_size],
            )
            for i in range(count)
        ]

    # -- many entries --

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        if not keys:
            return
        raw_keys, raw_values = b"".join(keys), b"".join(values)
        self._check_batch(len(keys), raw_keys, raw_values)
        if self._batch:
            count = ffi.new("uint32_t *", len(keys))
            rc = lib.bpf_map_update_batch(self.number, raw_keys, raw_values, count, ffi.NULL)
            error = _error(rc, f"update {self.name}")
            if error is None:
                return
            if not self._lacks_batch(error, count[0], len(keys)):
                raise BatchError(f"update {self.name}", error, count[0])
        self._update_singly(keys, values)

    def update_packed(self, keys: bytes, values: bytes) -> None:
        """Like ``update_batch``, all keys and all values one behind the other; for arrays."""
        number = len(keys) // self.key_size
        self._check_batch(number, keys, values)
        count = ffi.new("uint32_t *", number)
        rc = lib.bpf_map_update_batch(self.number, keys, values, count, ffi.NULL)
        check(rc, f"update {self.name}")

    def packed_values(self) -> bytes:
        """All values of an array, one behind the other in the order of their indices."""
        count = ffi.new("uint32_t *", self.max_entries)
        keys = ffi.new("char[]", self.max_entries * self.key_size)
        values = ffi.new("char[]", self.max_entries * self.value_size)
        following = ffi.new("char[]", CURSOR_BYTES)
        rc = lib.bpf_map_lookup_batch(
            self.number, ffi.NULL, following, keys, values, count, ffi.NULL
        )
        if not isinstance(_error(rc, f"read {self.name}"), NotFound):
            check(rc, f"read {self.name}")
        return bytes(ffi.buffer(values, count[0] * self.value_size))

    def _update_singly(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        for done, (key, value) in enumerate(zip(keys, values, strict=True)):
            try:
                self.update(key, value)
            except KernelError as error:
                raise BatchError(f"update {self.name}", error, done) from error

    def delete_batch(self, keys: Sequence[bytes]) -> None:
        done = 0
        while self._batch and done < len(keys):
            raw = b"".join(keys[done:])
            if len(raw) != (len(keys) - done) * self.key_size:
                raise ValueError(f"{self.name}: a key is not {self.key_size} bytes")
            count = ffi.new("uint32_t *", len(keys) - done)
            rc = lib.bpf_map_delete_batch(self.number, raw, count, ffi.NULL)
            error = _error(rc, f"delete from {self.name}")
            if error is None:
                return
            if self._lacks_batch(error, count[0], len(keys) - done):
                break
            done += count[0]
            if not isinstance(error, NotFound):
                raise BatchError(f"delete from {self.name}", error, done)
            done += 1
        self._delete_singly(keys[done:])

    def _delete_singly(self, keys: Sequence[bytes]) -> None:
        for done, key in enumerate(keys):
            try:
                self.delete(key)
            except NotFound:
                continue
            except KernelError as error:
                raise BatchError(f"delete from {self.name}", error, done) from error

    def delete_unchanged(
        self, entries: Sequence[tuple[bytes, bytes]], part: slice
    ) -> list[tuple[bytes, bytes]]:
        """Compare and delete. The kernel has no such call, so there are three for each entry: look,
        take out, and put back what came in between. Such an entry is missing for a microsecond.
        """
        keys, values = b"".join(key for key, _ in entries), b"".join(value for _, value in entries)
        self._check_batch(len(entries), keys, values)
        start, stop, _ = part.indices(self.value_size)
        gone = ffi.new("char[]", len(entries))
        rc = lib.cilia_map_delete_unchanged(
            *(self.number, keys, values, len(entries)),
            *(self.key_size, self.value_size, start, stop - start, gone),
        )
        check(rc, f"delete from {self.name}")
        marks = bytes(ffi.buffer(gone, len(entries)))
        return [entry for entry, mark in zip(entries, marks, strict=True) if mark]

    def clear(self) -> None:
        self.delete_batch([key for key, _ in self.items()])

    def _lacks_batch(self, error: KernelError, count: int, asked: int) -> bool:
        """Whether the kernel refused the call as such; it is not asked again then.

        A kind without batch operations leaves the count alone (or sets it to 0) and says ENOTSUPP.
        """
        if isinstance(error, _NOT_SUPPORTED) and count in (0, asked):
            self._batch = False
            return True
        return False

    # -- sizes: the kernel reads as many bytes as the map says, whatever Python holds --

    def _check_key(self, key: bytes) -> None:
        if len(key) != self.key_size:
            raise ValueError(f"{self.name}: key has {len(key)} bytes, not {self.key_size}")

    def _check_value(self, value: bytes) -> None:
        if len(value) != self.value_size:
            raise ValueError(f"{self.name}: value has {len(value)} bytes, not {self.value_size}")

    def _check_batch(self, count: int, keys: bytes, values: bytes) -> None:
        if len(keys) != count * self.key_size or len(values) != count * self.value_size:
            sizes = f"{self.key_size} + {self.value_size}"
            raise ValueError(f"{self.name}: batch of {count} is not of {sizes} bytes each")


def _error(rc: int, what: str) -> KernelError | None:
    """The exception for a return code, as a value.

    Without its traceback: that holds the caller's frame, whose buffers would then wait, with the
    exception in a local variable, for the cyclic garbage collector.
    """
    try:
        check(rc, what)
    except KernelError as error:
        return error.with_traceback(None)
    return None


def map_info(fd: int) -> MapInfo:
    """Ask the kernel about the map behind a descriptor."""
    out = ffi.new("struct cilia_map_info *")
    check(lib.cilia_map_info(fd, out), "info of map")
    try:
        kind: MapType | int = MapType(out.type)
    except ValueError:
        kind = out.type
    return MapInfo(
        kind,
        out.id,
        decode(out.name),
        out.key_size,
        out.value_size,
        out.max_entries,
        out.flags,
        out.btf_id,
        out.btf_key_type_id,
        out.btf_value_type_id,
    )

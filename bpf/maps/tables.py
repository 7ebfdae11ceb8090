# SPDX-License-Identifier: Apache-2.0
"""A map of tables: the value of a key is an array of 32-bit words, any number of parts long.

In the kernel it is a hash of maps. An array is filled before it is put at its key, so a program
that looks sees the whole old table or the whole new one. The kernel waits, after each call that
changes an outer map, until no program uses what was replaced (milliseconds); a batch waits once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bpf.errors import BatchError, KernelError, NotFound
from bpf.layout import header
from bpf.maps.map import Map
from bpf.maps.raw import ANY
from bpf.maps.types import MapFlag, MapType

WORD = 4

#: Size of the elements of an array: a table is a whole number of them (``struct lb_maglev_part``).
PART_BYTES = header("lb_types.h").struct("lb_maglev_part").size

#: What the last bytes of a table tell is what it was made from; they are no words of it.
MARK_BYTES = 16

#: Arrays held open at a time while they are put into the outer map.
BATCH = 256


class TableMap:
    """The raw map protocol with whole tables for values; owns the outer map."""

    def __init__(self, outer: Map) -> None:
        self._outer = outer
        self.name = outer.name
        self.max_entries = outer.max_entries

    @property
    def number(self) -> int:
        """Descriptor of the outer map."""
        return self._outer.number

    @classmethod
    def create(cls, name: str, max_entries: int) -> TableMap:
        """A new outer map without a pin. Raises: NoPrivilege, NoMemory."""
        with _new_table(1) as model:
            outer = Map.create(
                MapType.HASH_OF_MAPS,
                name,
                WORD,
                WORD,
                max_entries,
                flags=MapFlag.NO_PREALLOC,
                inner=model,
            )
        return cls(outer)

    def count(self) -> int:
        """Number of tables, without reading them."""
        return self._outer.count()

    def close(self) -> None:
        self._outer.close()

    def lookup(self, key: bytes) -> bytes | None:
        raw = self._outer.lookup(key)
        return None if raw is None else _read(raw)

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        with _filled(value) as table:
            self._outer.update(key, _descriptor(table), flags)

    def delete(self, key: bytes) -> None:
        self._outer.delete(key)

    def keys(self) -> Iterator[bytes]:
        """All keys without their tables."""
        yield from self._outer.keys()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key, raw in self._outer.items():
            table = _read(raw)
            if table is not None:
                yield key, table

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        for start in range(0, len(keys), BATCH):
            self._update_some(keys[start : start + BATCH], values[start : start + BATCH], start)

    def _update_some(self, keys: Sequence[bytes], values: Sequence[bytes], before: int) -> None:
        """A table that cannot be made ends the batch there, after those before it."""
        tables: list[Map] = []
        failure: KernelError | None = None
        try:
            for value in values:
                try:
                    tables.append(_filled(value))
                except KernelError as error:
                    failure = error
                    break
            if tables:
                self._outer.update_batch(keys[: len(tables)], [_descriptor(t) for t in tables])
        except BatchError as error:
            raise BatchError(f"update {self.name}", error.cause, before + error.done) from error
        finally:
            for table in tables:
                table.close()
        if failure is not None:
            raise BatchError(f"update {self.name}", failure, before + len(tables)) from failure

    def delete_batch(self, keys: Sequence[bytes]) -> None:
        self._outer.delete_batch(keys)

    def clear(self) -> None:
        self._outer.clear()


def _new_table(parts: int) -> Map:
    return Map.create(
        MapType.ARRAY, "cilia_table", WORD, PART_BYTES, parts, flags=MapFlag.INNER_MAP
    )


def _filled(value: bytes) -> Map:
    """An array of its own with these words."""
    parts, rest = divmod(len(value), PART_BYTES)
    if rest or not parts:
        raise ValueError(f"a table of {len(value)} bytes is no whole number of {PART_BYTES}")
    table = _new_table(parts)
    try:
        table.update_packed(_indices(parts), value)
    except BaseException:
        table.close()
        raise
    return table


def _indices(parts: int) -> bytes:
    """The keys of an array, one after the other."""
    return b"".join(index.to_bytes(WORD, "little") for index in range(parts))


def padded(words: bytes, mark: bytes) -> bytes:
    """A table of these words that ends in the mark, with zeros between where needed."""
    gap = -(len(words) + len(mark)) % PART_BYTES
    return words + bytes(gap) + mark


def _descriptor(table: Map) -> bytes:
    return table.number.to_bytes(WORD, "little")


def _read(raw: bytes) -> bytes | None:
    """The table behind an id as the outer map gives it; None if it was replaced meanwhile."""
    try:
        table = Map.by_id(int.from_bytes(raw, "little"))
    except NotFound:
        return None
    with table:
        return table.packed_values()

# SPDX-License-Identifier: Apache-2.0
"""Maps without a kernel: a dict with a map's limits and errors, and a wrapper that fails at random.

``FakeMap`` keeps the promises that callers may rely on (sizes checked, full at ``max_entries``, the
same exceptions), so that everything above ``bpf`` is testable without privilege. ``FaultyMap``
shows that it survives a kernel that says no.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from random import Random

from bpf.errors import BatchError, KernelError, NotFound, kernel_error
from bpf.layout import header
from bpf.maps.raw import ANY, EXIST, NOEXIST, RawMap

#: Size of the elements of a table.
TABLE_PART_BYTES = header("lb_types.h").struct("lb_maglev_part").size


class FakeMap:
    """A hash map in memory."""

    def __init__(
        self, name: str, key_size: int, value_size: int, max_entries: int = 1 << 20
    ) -> None:
        self.name = name
        self.key_size = key_size
        self.value_size = value_size
        self.max_entries = max_entries
        self._entries: dict[bytes, bytes] = {}

    def count(self) -> int:
        return len(self._entries)

    def lookup(self, key: bytes) -> bytes | None:
        self._check(key, self.key_size, "key")
        return self._entries.get(key)

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        self._check(key, self.key_size, "key")
        self._check(value, self.value_size, "value")
        present = key in self._entries
        if present and flags == NOEXIST:
            raise kernel_error(f"update {self.name}", errno.EEXIST)
        if not present and flags == EXIST:
            raise kernel_error(f"update {self.name}", errno.ENOENT)
        if not present and len(self._entries) >= self.max_entries:
            raise kernel_error(f"update {self.name}", errno.E2BIG)
        self._entries[bytes(key)] = bytes(value)

    def delete(self, key: bytes) -> None:
        self._check(key, self.key_size, "key")
        if key not in self._entries:
            raise kernel_error(f"delete from {self.name}", errno.ENOENT)
        del self._entries[key]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        yield from list(self._entries.items())

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        self._check_all(keys, self.key_size, "key")
        self._check_all(values, self.value_size, "value")
        if len(self._entries) + len(keys) <= self.max_entries:
            self._entries.update(zip(keys, values, strict=True))
            return
        for done, (key, value) in enumerate(zip(keys, values, strict=True)):
            try:
                self.update(key, value)
            except KernelError as error:
                raise BatchError(f"update {self.name}", error, done) from error

    def delete_batch(self, keys: Sequence[bytes]) -> None:
        self._check_all(keys, self.key_size, "key")
        for key in keys:
            self._entries.pop(key, None)

    def delete_unchanged(
        self, entries: Sequence[tuple[bytes, bytes]], part: slice
    ) -> list[tuple[bytes, bytes]]:
        gone = [
            (key, value)
            for key, value in entries
            if self._entries.get(key, b"")[part] == value[part]
        ]
        self.delete_batch([key for key, _ in gone])
        return gone

    def clear(self) -> None:
        self._entries.clear()

    def _check(self, data: bytes, size: int, what: str) -> None:
        if len(data) != size:
            raise ValueError(f"{self.name}: {what} has {len(data)} bytes, not {size}")

    def _check_all(self, many: Sequence[bytes], size: int, what: str) -> None:
        for length in set(map(len, many)) - {size}:
            raise ValueError(f"{self.name}: {what} has {length} bytes, not {size}")


class FakeTableMap(FakeMap):
    """Values are tables of any number of parts, as in ``bpf.maps.tables``."""

    def __init__(self, name: str, key_size: int, max_entries: int = 1 << 20) -> None:
        super().__init__(name, key_size, TABLE_PART_BYTES, max_entries)

    def _check(self, data: bytes, size: int, what: str) -> None:
        if what == "key":
            super()._check(data, size, what)
        elif not data or len(data) % size:
            raise ValueError(f"{self.name}: {len(data)} bytes are no whole number of {size}")

    def _check_all(self, many: Sequence[bytes], size: int, what: str) -> None:
        for data in many:
            self._check(data, size, what)


class FaultyMap:
    """Another map whose writes fail with a given probability, once for each entry of a batch.

    A fault strikes before the entry is touched, as ENOMEM; reading never fails.
    """

    def __init__(self, target: RawMap, probability: float, rng: Random) -> None:
        self.target = target
        self.probability = probability
        self._rng = rng

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def max_entries(self) -> int:
        return self.target.max_entries

    def _maybe_fail(self, what: str) -> None:
        if self._rng.random() < self.probability:
            raise kernel_error(f"{what} {self.name} (injected)", errno.ENOMEM)

    def lookup(self, key: bytes) -> bytes | None:
        return self.target.lookup(key)

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        self._maybe_fail("update")
        self.target.update(key, value, flags)

    def delete(self, key: bytes) -> None:
        self._maybe_fail("delete from")
        self.target.delete(key)

    def count(self) -> int:
        return self.target.count()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        return self.target.items()

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        for done, (key, value) in enumerate(zip(keys, values, strict=True)):
            try:
                self.update(key, value)
            except KernelError as error:
                raise BatchError(f"update {self.name}", error, done) from error

    def delete_batch(self, keys: Sequence[bytes]) -> None:
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
        if entries:
            self._maybe_fail("delete from")
        assert isinstance(self.target, FakeMap)
        return self.target.delete_unchanged(entries, part)

    def clear(self) -> None:
        self.delete_batch([key for key, _ in self.items()])

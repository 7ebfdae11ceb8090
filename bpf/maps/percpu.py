# SPDX-License-Identifier: Apache-2.0
"""Maps with one value a CPU: counters that programs raise without a lock.

The kernel moves all values of an entry at once, one for every *possible* CPU, each padded to 8
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bpf.libbpf import possible_cpus
from bpf.maps.map import Map, cpu_stride


class PerCpuMap(Map):
    """A per-CPU hash, LRU or array. The raw methods move all values of an entry in one piece."""

    __slots__ = ("cpu_value_size", "cpus", "stride")

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.cpus = possible_cpus()
        self.cpu_value_size = self.info.value_size
        self.stride = cpu_stride(self.cpu_value_size)

    def lookup_each(self, key: bytes) -> list[bytes] | None:
        """One value a possible CPU, or None."""
        raw = self.lookup(key)
        return None if raw is None else self.split(raw)

    def items_each(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """All entries with one value a possible CPU."""
        for key, raw in self.items():
            yield key, self.split(raw)

    def update_each(self, key: bytes, values: Sequence[bytes]) -> None:
        """Set the value of every CPU. Raises: ValueError unless there is one for each."""
        padding = bytes(self.stride - self.cpu_value_size)
        self.update(key, b"".join(value + padding for value in values))

    def split(self, raw: bytes) -> list[bytes]:
        """The values in one raw value, by CPU."""
        return [
            raw[start : start + self.cpu_value_size]
            for start in range(0, self.value_size, self.stride)
        ]

    def sum_u64(self, key: bytes) -> list[int]:
        """Each 64-bit counter of the value summed over the CPUs; zeros when there is no entry."""
        return sum_counters(self.lookup_each(key) or [], self.cpu_value_size)


def sum_counters(values: Sequence[bytes], value_size: int) -> list[int]:
    """Add values field by field, each a row of 64-bit counters in host order."""
    fields = range(0, value_size, 8)
    return [sum(int.from_bytes(value[at : at + 8], "little") for value in values) for at in fields]

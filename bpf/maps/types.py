# SPDX-License-Identifier: Apache-2.0
"""Kinds and flags of maps, with the kernel's numbers."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class MapType(IntEnum):
    """``enum bpf_map_type``: the kinds that are used here."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    PERCPU_CGROUP_STORAGE = 21
    SK_STORAGE = 24
    RINGBUF = 27

    @property
    def is_percpu(self) -> bool:
        """True if a look-up returns one value for every possible CPU, each padded to 8 bytes."""
        return self in (
            MapType.PERCPU_HASH,
            MapType.PERCPU_ARRAY,
            MapType.LRU_PERCPU_HASH,
            MapType.PERCPU_CGROUP_STORAGE,
        )


class MapFlag(IntFlag):
    """Flags of map creation."""

    NONE = 0
    #: Entries are allocated when they are made; a large map costs nothing while it is empty.
    NO_PREALLOC = 1
    NO_COMMON_LRU = 2
    #: An inner map may differ in size from the model of its outer map (Linux 5.10).
    INNER_MAP = 0x1000

# SPDX-License-Identifier: Apache-2.0
"""How much memory this process holds, and whether that grows.

Resident memory is what counts, but the allocator takes and returns it in arenas of a mebibyte: it
moves in steps, up with each new peak. The number of live blocks shows sooner whether objects are
kept.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


def rss_kib() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


def live_blocks() -> int:
    """Blocks of Python's allocator that are in use."""
    return sys.getallocatedblocks()


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h: sums over all arenas (glibc 2.33)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def live_malloc_kib() -> int:
    """What malloc has given out: objects above 512 bytes, and all that libraries have."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo2
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd) >> 10


#: Samples are put together in so many bins, and a bin is one point of the line: successive samples
#: resemble each other, and taken singly would make a slope look surer than it is.
BINS = 12
#: Student's t for 95 % and the ten degrees of freedom that are left of twelve points.
STUDENT_T = 2.23


class Slope(NamedTuple):
    """A straight line through samples, by least squares."""

    per_minute: float
    #: Half of the interval in which the slope is with 95 % confidence.
    confidence: float

    def __str__(self) -> str:
        return f"{self.per_minute:+.1f} ± {self.confidence:.1f} a minute"


def slope(samples: Sequence[tuple[float, float]]) -> Slope:
    """Of (seconds, amount); at least three samples at different times.

    >>> slope([(0, 10.0), (60, 12.0), (120, 14.0), (180, 16.0)])
    Slope(per_minute=2.0, confidence=0.0)
    """
    points = _binned(samples)
    mean_x, mean_y = _mean(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residual = sum((y - mean_y - rise * (x - mean_x)) ** 2 for x, y in points)
    error = math.sqrt(residual / (len(points) - 2) / spread)
    return Slope(rise * 60, STUDENT_T * error * 60)


def _binned(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    bins = min(BINS, len(samples))
    edges = [number * len(samples) // bins for number in range(bins + 1)]
    return [_mean(samples[low:high]) for low, high in pairwise(edges)]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)

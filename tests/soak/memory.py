# SPDX-License-Identifier: Apache-2.0
"""How much memory this process holds, and whether that grows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


def rss_kib() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


class Slope(NamedTuple):
    """A straight line through samples, by least squares."""

    per_minute: float
    #: Half of the interval in which the slope is with 95 % confidence, for independent errors.
    confidence: float

    def __str__(self) -> str:
        return f"{self.per_minute:+.1f} ± {self.confidence:.1f} KiB/min"


def slope(samples: Sequence[tuple[float, float]]) -> Slope:
    """Of (seconds, KiB); at least three samples at different times.

    >>> slope([(0, 10.0), (60, 12.0), (120, 14.0), (180, 16.0)])
    Slope(per_minute=2.0, confidence=0.0)
    """
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
    residual = sum((y - mean_y - rise * (x - mean_x)) ** 2 for x, y in samples)
    error = math.sqrt(residual / (count - 2) / spread)
    return Slope(rise * 60, 1.96 * error * 60)

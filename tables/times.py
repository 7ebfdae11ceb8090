# SPDX-License-Identifier: Apache-2.0
"""Times and durations as the field prints them: RFC 3339, Go durations, the ages of kubectl."""

from __future__ import annotations

import datetime
import time


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as UTC text.

    >>> rfc3339(0), rfc3339(1.5)
    ('1970-01-01T00:00:00Z', '1970-01-01T00:00:01.500000Z')
    """
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


def go_duration(seconds: int) -> str:
    """Whole seconds as Go prints a duration.

    >>> go_duration(42), go_duration(10800), go_duration(90)
    ('42s', '3h0m0s', '1m30s')
    """
    minutes, s = divmod(seconds, 60)
    h, m = divmod(minutes, 60)
    return f"{h}h{m}m{s}s" if h else f"{m}m{s}s" if m else f"{s}s"


def short_duration(seconds: float) -> str:
    """An age in one unit, rounded down.

    >>> [short_duration(s) for s in (0.5, 42, 300, 7300, 200000, 40000000)]
    ['0s', '42s', '5m', '2h', '2d', '1y']
    """
    s = max(0, int(seconds))
    for unit, size in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("m", 60)):
        if s >= size:
            return f"{s // size}{unit}"
    return f"{s}s"


def age(since: float) -> str:
    """How long ago a moment (seconds since the epoch) was."""
    return short_duration(time.time() - since)

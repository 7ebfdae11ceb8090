# SPDX-License-Identifier: Apache-2.0
"""How the watch of one resource is: what it is doing, when it was last proven, what went wrong."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

import msgspec


class State(StrEnum):
    WAITING = "waiting"
    LISTING = "listing"
    WATCHING = "watching"
    # The server has no such resource.
    ABSENT = "absent"
    FAILED = "failed"


class Anomaly(StrEnum):
    """What a stream or an answer did that it should not."""

    DUPLICATE = "duplicate"
    DISORDER = "disorder"
    GAP = "gap"
    # Found by a proof: changes that were not sent, and versions that went back.
    MISSED = "missed"
    REWOUND = "rewound"
    GONE = "gone"
    GARBAGE = "garbage"


class WatchState(msgspec.Struct):
    """Mutable and owned by the watch: whoever keeps it takes a copy. Times are seconds since the
    epoch, 0 for never."""

    resource: str
    state: State = State.WAITING
    # All objects were sent once.
    listed: bool = False
    revision: int = 0
    objects: int = 0
    server: str = ""
    last_event_at: float = 0.0
    last_anomaly_at: float = 0.0
    # When what was told was last equal to a list.
    proven_at: float = 0.0
    proofs: int = 0
    proof_bytes: int = 0
    proof_cpu_s: float = 0.0
    # Differences sent after a list, by its cause and what they were.
    repairs: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    anomalies: Counter[Anomaly] = msgspec.field(default_factory=Counter)
    errors: int = 0
    error: str = ""
    last_error_at: float = 0.0

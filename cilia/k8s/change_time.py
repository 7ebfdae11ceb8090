# SPDX-License-Identifier: Apache-2.0
"""When a change was made, as well as the object tells, and how we know.

An EndpointSlice says when the pods behind it changed, which is what users wait for. The annotation
stays when something else changes the slice later, so it counts for the first version that has it.
Other objects have the times of their writers, to the second; else there is the arrival here.
"""

from __future__ import annotations

import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

TRIGGER: Final = "endpoints.kubernetes.io/last-change-trigger-time"


class TimeSource(StrEnum):
    TRIGGER = "trigger"
    MANAGED_FIELDS = "managed-fields"
    ARRIVAL = "arrival"


class Changed(msgspec.Struct, frozen=True, gc=False):
    """Seconds since the epoch; `at` is by the writer's clock unless the source is the arrival."""

    at: float
    source: TimeSource
    received_at: float


class _Manager(msgspec.Struct):
    time: str = ""


class _Metadata(msgspec.Struct, rename={"managed_fields": "managedFields"}):
    managed_fields: list[_Manager] | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata


_decoder: Final = msgspec.json.Decoder(_Object)


def seconds(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0 for what is none.

    >>> seconds("1970-01-01T00:00:01.5Z"), seconds("soon")
    (1.5, 0.0)
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
        return moment.timestamp() if moment.tzinfo is not None else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _managers(raw: Any) -> list[_Manager]:
    """None for fields of another form: they are no reason not to use the object."""
    try:
        return _decoder.decode(raw).metadata.managed_fields or []
    except (msgspec.DecodeError, ValueError, RecursionError):
        return []


def changed(raw: Any, trigger: str, last_trigger: str, received_at: float) -> Changed:
    """The time of the change that made this version. `raw`: the object's bytes.

    A trigger time that an earlier version had already is no time of this change.
    """
    if trigger and trigger != last_trigger and (at := seconds(trigger)):
        return Changed(at, TimeSource.TRIGGER, received_at)
    at = max((seconds(manager.time) for manager in _managers(raw)), default=0.0)
    if at:
        return Changed(at, TimeSource.MANAGED_FIELDS, received_at)
    return Changed(received_at, TimeSource.ARRIVAL, received_at)

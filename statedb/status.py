# SPDX-License-Identifier: Apache-2.0
"""The state of reconciliation of one object, kept in the object itself.

A writer sets `pending`; a reconciler answers with `done`, `error` or `refused`. The number of a
pending status tells a reconciler that wrote its result back whether someone else asked anew in the
meantime.
"""

from __future__ import annotations

import itertools
import time
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_ids = itertools.count(1)


class StatusKind(StrEnum):
    """What was asked for, or came out."""

    PENDING = "pending"
    REFRESHING = "refreshing"
    DONE = "done"
    ERROR = "error"
    REFUSED = "refused"


class Status(msgspec.Struct, frozen=True, gc=False):
    """`updated_at`: seconds since the epoch. `id`: unique in the process, new with each status
    that is made. No cycle can go through one, so the collector need not know of them: there are as
    many as objects.
    """

    kind: StatusKind
    updated_at: float = 0.0
    error: str = ""
    id: int = 0

    def __str__(self) -> str:
        kind = self.kind.value.capitalize()
        return f"{kind}: {self.error}" if self.error else kind


def pending() -> Status:
    """Ask for reconciliation."""
    return Status(StatusKind.PENDING, time.time(), "", next(_ids))


def refreshing() -> Status:
    """Ask for reconciliation of what was done already, at low priority."""
    return Status(StatusKind.REFRESHING, time.time(), "", next(_ids))


def done() -> Status:
    """The target has the object."""
    return Status(StatusKind.DONE, time.time(), "", next(_ids))


def error(message: str) -> Status:
    """The target failed; it will be tried again."""
    return Status(StatusKind.ERROR, time.time(), message, next(_ids))


def refused(message: str) -> Status:
    """The target does not have the object, for a reason that stands until somebody asks anew."""
    return Status(StatusKind.REFUSED, time.time(), message, next(_ids))


def get_status(obj: Any) -> Status:
    """Return the field `status` of an object."""
    status: Status = obj.status
    return status


def set_status(obj: T, status: Status) -> T:
    """Return a struct with another `status` and all else as it is."""
    changed: T = msgspec.structs.replace(obj, status=status)  # type: ignore[type-var]
    return changed

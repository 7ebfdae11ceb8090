# SPDX-License-Identifier: Apache-2.0
"""Who holds the oldest snapshot, and for how long: found when somebody asks, free until then.

A held snapshot keeps the rows that were deleted or replaced since, in all tables. Suspended
coroutines and generators are looked through for it, because a loop that waits is what holds one by
mistake.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, NamedTuple

from statedb._commits import ReadTxn
from statedb.db import DB

#: From this age on a snapshot is told: whoever has one for so long waits with it.
OLD_S = 10.0


class Held(NamedTuple):
    """A snapshot that is not the newest; `places`: where it is held, as `FUNCTION (FILE:LINE)`."""

    age_s: float
    places: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.age_s:.0f} s, held by {', '.join(self.places) or 'no task that waits'}"


def oldest_snapshot(db: DB, older_than_s: float = 0.0) -> Held | None:
    """Return the oldest snapshot that is held below the newest; None if there is none so old.

    If there is one, all objects of the process are walked: some 100 ms for a million.
    """
    found = db.oldest_held()
    if found is None:
        return None
    token, since = found
    age_s = time.monotonic() - since
    if age_s < older_than_s:
        return None
    places = tuple(sorted({_place(frame) for frame in _frames() if _holds(frame, token)}))
    return Held(age_s, places)


def _frames() -> Iterator[FrameType]:
    """Frames that are suspended."""
    for obj in gc.get_objects():
        frame: FrameType | None = None
        if isinstance(obj, CoroutineType):
            frame = obj.cr_frame
        elif isinstance(obj, GeneratorType):
            frame = obj.gi_frame
        elif isinstance(obj, AsyncGeneratorType):
            frame = obj.ag_frame
        if frame is not None:
            yield frame


def _holds(frame: FrameType, token: object) -> bool:
    return any(
        _is_of(value, token) or any(_is_of(inner, token) for inner in _inside(value))
        for value in frame.f_locals.values()
    )


def _inside(value: Any) -> list[Any]:
    """What an iterator over rows refers to; other objects are not looked into."""
    return gc.get_referents(value) if hasattr(value, "__next__") else []


def _is_of(value: Any, token: object) -> bool:
    return isinstance(value, ReadTxn) and value._token is token


def _place(frame: FrameType) -> str:
    code = frame.f_code
    file = inspect.getsourcefile(code) or code.co_filename
    return f"{code.co_qualname} ({file}:{frame.f_lineno})"

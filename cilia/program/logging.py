# SPDX-License-Identifier: Apache-2.0
"""Structured logs on standard error: an event and its fields, as JSON lines or for a terminal.

The last of what was logged is kept in memory as well, for whoever asks a running program.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import deque
from typing import Any, Final, TextIO

import structlog

from statedb.shown.text import all_visible

__all__ = ["RECENT", "configure"]

RECENT_SIZE: Final = 1 << 20


class Recent:
    """A stream that passes on what is written and keeps the end of it. Thread-safe as a deque is:
    what is written in one call stays together.

    A log that takes no more (a closed terminal, a full disk) ends nothing: the end of what was
    written is still kept, and can be asked for.
    """

    def __init__(self, size: int = RECENT_SIZE) -> None:
        self._size = size
        self._kept: deque[str] = deque()
        self._length = 0
        self._stream: TextIO | None = None

    def to(self, stream: TextIO) -> Recent:
        self._stream = stream
        return self

    def write(self, text: str) -> int:
        self._kept.append(text)
        self._length += len(text)
        while self._length > self._size and self._kept:
            self._length -= len(self._kept.popleft())
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.flush()

    def text(self) -> str:
        return "".join(list(self._kept))


RECENT: Final = Recent()


def _escape(
    logger: Any, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make all that is logged visible, on one line but for tracebacks."""
    traceback = event.pop("exception", None)
    shown: structlog.typing.EventDict = all_visible(event)
    if traceback is not None:
        shown["exception"] = all_visible(traceback, keep="\n\t")
    return shown


def configure(level: str, form: str) -> None:
    """Set up structlog once for the process; the standard library's loggers join at warning."""
    stream: Any = RECENT.to(sys.stderr)
    as_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderers: list[structlog.typing.Processor] = (
        [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if as_console
        else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(name)s: %(message)s")

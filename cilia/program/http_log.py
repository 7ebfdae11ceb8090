# SPDX-License-Identifier: Apache-2.0
"""What uvicorn logs of a listener, as events of this program's log.

What a client sends is no error of ours: a malformed request is answered with 400 and is no line,
or whoever reaches a listener fills the disk with tracebacks.
"""

from __future__ import annotations

import logging

import h11
import structlog

__all__ = ["take_over"]

log = structlog.get_logger("http")


class _Events(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # The application answers a request of which the rest turned out to be none.
        if not isinstance(error, h11.LocalProtocolError):
            log.error(record.getMessage(), exc_info=error)


def take_over() -> None:
    """Have uvicorn's lines go through the program's log; does nothing twice."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)  # its warnings are of what clients sent
    logger.propagate = False
    if not any(isinstance(handler, _Events) for handler in logger.handlers):
        logger.addHandler(_Events())

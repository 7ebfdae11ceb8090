# SPDX-License-Identifier: Apache-2.0
"""Tells a standard output that takes no more from all else that fails.

A command writes in many places, some of them in task groups; only the file itself knows that it was
the output.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

__all__ = ["told_if_lost"]


class LostOutput(OSError):
    """Standard output takes no more."""


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise LostOutput(error.errno, error.strerror) from None


@contextmanager
def told_if_lost() -> Iterator[None]:
    """End the process with one sentence, and 1, if its output cannot be written."""
    given = sys.stdout
    if isinstance(given, io.TextIOWrapper):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(given.fileno(), "w", closefd=False)),
            given.encoding,
            given.errors,
            line_buffering=given.line_buffering,
            write_through=given.write_through,
        )
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # or the end of the interpreter would find what went wrong
    except (LostOutput, BaseExceptionGroup) as error:
        lost = _lost(error)
        if lost is None:
            raise
        # What is left goes nowhere, without another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), given.fileno())
        if lost.errno != errno.EPIPE:  # a reader that went wants to hear no more
            click.echo(f"Error: the output cannot be written: {lost.strerror}", err=True)
        sys.exit(1)


def _lost(error: BaseException) -> LostOutput | None:
    """Return the error of the output that is in a group, or is the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_lost, error.exceptions)), None)
    return error if isinstance(error, LostOutput) else None

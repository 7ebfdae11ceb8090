# SPDX-License-Identifier: Apache-2.0
"""Whether a command ended as its prefix demands, and how a failure is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cilia.script.errors import CommandFailed, DeadlineExceeded, ScriptError, Unexcused
from cilia.script.tokens import Want

if TYPE_CHECKING:
    from cilia.script.state import State


# A command that waited until the deadline may return a moment before it, by the clock's grain.
DEADLINE_MARGIN_S = 0.005


def check(state: State, want: Want, error: BaseException | None) -> None:
    """Return if the outcome is the wanted one.

    A failure at or after the deadline says nothing about the command, so that `!` refuses it.

    Raises: CommandFailed with the reason, or the error itself if nothing may excuse it.
    """
    if isinstance(error, Unexcused):
        try:
            raise error
        finally:
            del error  # a frame that refers to its exception is a cycle
    if error is None:
        if want.fails:
            raise CommandFailed("unexpected command success")
        return
    if want is Want.EITHER:
        return
    if isinstance(error, DeadlineExceeded) or state.remaining_s() < DEADLINE_MARGIN_S:
        raise DeadlineExceeded(describe(error)) from error
    if not want.fails:
        raise CommandFailed(describe(error)) from error


def describe(error: BaseException) -> str:
    """What went wrong, the first line being the gist; a type is named if its text may not tell."""
    if isinstance(error, OSError) and error.errno is not None:
        names = [os.fspath(n) for n in (error.filename, error.filename2) if n is not None]
        return ": ".join([*map(str, names), os.strerror(error.errno).lower()])
    text = str(error)
    told = isinstance(error, ScriptError | ValueError) or type(error).__module__ != "builtins"
    if told and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

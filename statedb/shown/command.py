# SPDX-License-Identifier: Apache-2.0
"""What a script command is: plain values that any engine of the same shapes can take and give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class State(Protocol):
    """What a command may use of the engine that runs it."""

    update_golden: bool

    def read_text(self, name: str) -> str: ...
    def write_text(self, name: str, text: str) -> object: ...
    def expand(self, text: str) -> str: ...
    def remaining_s(self) -> float: ...
    def log(self, text: str) -> object: ...
    def record_golden(self, name: str, content: str) -> object: ...


@dataclass(frozen=True)
class Flag:
    """A flag `--name` or `-short`; `kind` is bool, str, int, duration (seconds) or strings."""

    name: str
    short: str = ""
    kind: str = "bool"
    default: Any = None
    help: str = ""


@dataclass(frozen=True)
class Output:
    """Replaces the buffers stdout and stderr, even by nothing, before the error counts."""

    stdout: str = ""
    stderr: str = ""
    error: Exception | None = None


Run = Callable[[Any, dict[str, Any], list[str]], Output | None]


@dataclass(frozen=True)
class Command:
    """One script command; `flags` empty means that it gets its arguments as they are.

    `words` gives what can stand as an argument, for completion.
    """

    name: str
    summary: str
    usage: str
    run: Run
    detail: Sequence[str] = ()
    flags: Sequence[Flag] = ()
    regexp_args: bool = False
    words: Callable[[], Sequence[str]] | None = None

# SPDX-License-Identifier: Apache-2.0
"""What a command is, to the engine and to whoever writes one.

A command is a plain value. Anything of this shape will do, which is how packages that may not
import this one bring their own; `Command` is the ready-made form. What `run` returns decides about
the buffers: an `Output` replaces stdout and stderr, even by nothing; None leaves them as they
were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cilia.script.flags import Flag, FlagLike

__all__ = [
    "Command",
    "CommandLike",
    "CommandSet",
    "Flag",
    "FlagLike",
    "Output",
    "OutputLike",
]


class OutputLike(Protocol):
    """What the engine reads of a command's result."""

    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def error(self) -> BaseException | None: ...


class CommandLike(Protocol):
    """What the engine needs of a command.

    Two more attributes are looked for by name: `start(state, flags, args)`, which makes a command
    fit for the background and returns a function that waits and returns the output; and `words()`,
    the arguments that completion offers.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def usage(self) -> str: ...
    @property
    def detail(self) -> Sequence[str]: ...
    @property
    def flags(self) -> Sequence[FlagLike]: ...
    @property
    def regexp_args(self) -> bool: ...

    def run(self, state: Any, flags: dict[str, Any], args: list[str]) -> OutputLike | None: ...


@dataclass(frozen=True, slots=True)
class Output:
    """The new content of the buffers, and the failure if there was one."""

    stdout: str = ""
    stderr: str = ""
    error: BaseException | None = None


Run = Callable[[Any, dict[str, Any], list[str]], OutputLike | None]
Start = Callable[[Any, dict[str, Any], list[str]], Callable[[], OutputLike]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command as a value.

    `flags`: empty means that the arguments are handed over as they stand. `regexp_args`: the first
    argument that is no flag is a regular expression, so that variables in it are quoted.
    """

    name: str
    summary: str
    run: Run
    usage: str = ""
    detail: Sequence[str] = ()
    flags: Sequence[FlagLike] = ()
    regexp_args: bool = False
    start: Start | None = None
    words: Callable[[], Sequence[str]] | None = field(default=None)


class CommandSet(Mapping[str, CommandLike]):
    """Commands by name; a later one replaces an earlier one of its name."""

    def __init__(self, commands: Iterable[CommandLike] = ()) -> None:
        self._by_name = {command.name: command for command in commands}

    def __getitem__(self, name: str) -> CommandLike:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._by_name))

    def __len__(self) -> int:
        return len(self._by_name)

    def resolve(self, name: str, first_word: str | None) -> tuple[str, int]:
        """The full name of a command, and how many words of the line belong to it.

        `a b` is the old spelling of `a/b`, and means that wherever `a/b` exists.
        """
        joined = f"{name}/{first_word}"
        if first_word and joined in self._by_name:
            return joined, 1
        return name, 0

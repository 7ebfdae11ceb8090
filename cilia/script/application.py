# SPDX-License-Identifier: Apache-2.0
"""The application under test, and the `hive` commands that start, stop and rebuild it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from cilia.script.commands import Command, CommandLike, Output
from cilia.script.errors import CommandFailed
from cilia.script.files import need
from cilia.script.state import Flags, State

# The longest that an application may take to start or to stop.
LIMIT_S = 60.0


class Application(Protocol):
    """What a script needs of a program that it tests.

    Called from the script's thread only. `start` and `stop` return when it is done, and raise if it
    failed or took longer than the limit. `recreate` is called while stopped: a new application
    with empty state, from the first flags with these after them; what stands for the outside world
    (API server, kernel maps) survives. `commands` is asked for again after it.
    """

    def commands(self) -> Iterable[CommandLike]: ...

    def start(self, limit_s: float) -> None: ...

    def stop(self, limit_s: float) -> None: ...

    def recreate(self, flags: Sequence[str]) -> None: ...

    def describe(self) -> str:
        """The objects that it consists of, as text for people."""


class Lifecycle:
    """An application that is started at most once at a time, and stopped in the end.

    Starting what runs and stopping what does not are no errors, so that a section with either may
    be retried. `started`: it runs. `begun`: it was asked to start and not stopped since, so that
    something of it may run.
    """

    def __init__(self, application: Application, on_recreate: Callable[[], None]) -> None:
        self.application = application
        self.started = False
        self.begun = False
        self._on_recreate = on_recreate

    def start(self, limit_s: float) -> None:
        if self.started:
            return
        self.stop(limit_s)
        self.begun = True
        self.application.start(limit_s)
        self.started = True

    def stop(self, limit_s: float) -> None:
        if self.begun:
            self.begun = self.started = False
            self.application.stop(limit_s)

    def recreate(self, flags: Sequence[str]) -> None:
        if self.begun:
            raise CommandFailed("stop it first: it was started")
        self.application.recreate(flags)
        self._on_recreate()

    def close(self) -> None:
        """Stop what may run of the application."""
        self.stop(LIMIT_S)


def hive_commands(lifecycle: Lifecycle) -> tuple[Command, ...]:
    """`hive`, `hive/start`, `hive/stop`, `hive/recreate`, `hive/describe`."""

    def start(state: State, flags: Flags, args: list[str]) -> None:
        need(args, 0, 0)
        lifecycle.start(min(LIMIT_S, state.remaining_s()))

    def stop(state: State, flags: Flags, args: list[str]) -> None:
        need(args, 0, 0)
        lifecycle.stop(min(LIMIT_S, state.remaining_s()))

    def recreate(state: State, flags: Flags, args: list[str]) -> None:
        lifecycle.recreate(args)

    def describe(state: State, flags: Flags, args: list[str]) -> Output:
        need(args, 0, 0)
        return Output(lifecycle.application.describe())

    return (
        Command("hive", "print the objects of the application", describe),
        Command("hive/describe", "print the objects of the application", describe),
        Command("hive/start", "start the application", start),
        Command("hive/stop", "stop the application", stop),
        Command(
            "hive/recreate",
            "build the application anew, with an empty database",
            recreate,
            "[FLAG...]",
            ("It must be stopped. What stands for the outside world survives.",),
        ),
    )

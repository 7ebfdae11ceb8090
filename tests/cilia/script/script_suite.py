# SPDX-License-Identifier: Apache-2.0
"""What the scripts in testdata/script run against: an application that is nothing but lifecycle.

Its commands make outcomes on demand, and `nested` runs a script within a script, so that also the
failure of a script can be shown by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from cilia.script.commands import Command, Flag, Output
from cilia.script.documents import DOCUMENT_COMMANDS
from cilia.script.errors import CommandFailed, ScriptFailed
from cilia.script.runner import Suite, run_file
from cilia.script.state import Flags, State


class FakeApplication:
    """Counts: `inside` begins anew with each recreation, `outside` is the world and survives."""

    def __init__(self, flags: Sequence[str]) -> None:
        self.first_flags = list(flags)
        self.outside = 0
        self._build(flags)

    def _build(self, flags: Sequence[str]) -> None:
        if "--impossible" in flags:
            raise ValueError("impossible was asked for")
        self.flags = list(flags)
        self.inside = 0
        self.running = False
        self.starts = 0
        self.limit_s = 0.0

    def start(self, limit_s: float) -> None:
        if "--broken" in self.flags:
            raise CommandFailed("broken application")
        if self.running:
            raise AssertionError("started twice")
        self.starts += 1
        self.running, self.limit_s = True, limit_s
        if "--flaky=2" in self.flags and self.starts < 3:
            raise CommandFailed("not yet")

    def stop(self, limit_s: float) -> None:
        if "--stuck" in self.flags:
            raise CommandFailed("stuck application")
        self.running, self.limit_s = False, limit_s

    def recreate(self, flags: Sequence[str]) -> None:
        self._build([*self.first_flags, *flags])

    def describe(self) -> str:
        running = "started" if self.running else "stopped"
        return f"application {running}, {self.starts} starts\n"

    def commands(self) -> list[Command]:
        commands = [
            Command("fake/flags", "print the flags", self._flags),
            Command("fake/count", "print the counts", self._count),
            Command("fake/add", "count one up", self._add),
            Command("fake/reaches", "fail until the count is reached", self._reaches, "N"),
            Command("fake/hangs-at", "hang if the count is reached", self._hangs_at, "N"),
            Command("fake/limit", "print the time limit of the last start or stop", self._limit),
            OUTPUT,
            HANG,
            REMAINING,
            BOOM,
            NESTED,
            *DOCUMENT_COMMANDS,
        ]
        if "--extra" in self.flags:
            commands.append(Command("fake/extra", "exists with --extra", self._count))
        return commands

    def _flags(self, state: State, flags: Flags, args: list[str]) -> Output:
        return Output("".join(f"{flag}\n" for flag in self.flags))

    def _count(self, state: State, flags: Flags, args: list[str]) -> Output:
        return Output(f"inside {self.inside} outside {self.outside}\n")

    def _add(self, state: State, flags: Flags, args: list[str]) -> None:
        self.inside += 1
        self.outside += 1

    def _reaches(self, state: State, flags: Flags, args: list[str]) -> None:
        if self.inside < int(args[0]):
            raise CommandFailed(f"count is {self.inside}")

    def _hangs_at(self, state: State, flags: Flags, args: list[str]) -> None:
        if self.inside >= int(args[0]):
            state.wait(3600)

    def _limit(self, state: State, flags: Flags, args: list[str]) -> Output:
        return Output(f"at most 60: {0 < self.limit_s <= 60}\n")


def _output(state: State, flags: Flags, args: list[str]) -> Output:
    error = CommandFailed("asked to fail") if flags["fail"] else None
    return Output(flags["out"], flags["err"], error)


def _hang(state: State, flags: Flags, args: list[str]) -> None:
    state.wait(3600)


def _remaining(state: State, flags: Flags, args: list[str]) -> Output:
    return Output(f"{state.remaining_s():.0f}\n")


def _boom(state: State, flags: Flags, args: list[str]) -> None:
    raise KeyError("boom")


def _nested(state: State, flags: Flags, args: list[str]) -> Output:
    """Run a script file in a directory of its own, from an empty environment."""
    log = list[str]()
    suite = Suite(
        FakeApplication,
        retry_interval_s=0.001,
        max_retry_interval_s=0.004,
        deadline_s=flags["deadline"],
    )
    try:
        result = run_file(state.path(args[0]), suite, update=flags["update"], sink=log.append)
    except ScriptFailed as failed:
        return Output("".join(log), f"{failed}\n", CommandFailed("the script failed"))
    ending = "skipped" if result.ending.skipped else "stopped" if result.ending.stopped else "ended"
    return Output("".join(log), f"{ending} {result.ending.message}".rstrip() + "\n")


OUTPUT = Command(
    "fake/output",
    "fill the buffers",
    _output,
    flags=(Flag("out", kind="str"), Flag("err", kind="str"), Flag("fail")),
)
HANG = Command("fake/hang", "wait for the deadline", _hang)
REMAINING = Command("fake/remaining", "print the seconds that are left", _remaining)
BOOM = Command("fake/boom", "raise an exception of the wrong kind", _boom)
NESTED = Command(
    "nested",
    "run a script: its log becomes stdout, its verdict stderr",
    _nested,
    "FILE",
    flags=(Flag("update"), Flag("deadline", kind="duration", default=5.0)),
)

SUITE = Suite(
    FakeApplication,
    environment={"PATH": "/usr/bin:/bin"},
    retry_interval_s=0.001,
    max_retry_interval_s=0.004,
)

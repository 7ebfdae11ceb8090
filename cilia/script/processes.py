# SPDX-License-Identifier: Apache-2.0
"""The command `exec`: a program with the script's directory, variables and time.

Output goes to files without a name, not to pipes, so that neither a full pipe nor a grandchild that
keeps one open can hold the script up.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path

from cilia.script import txtar
from cilia.script.commands import Command, Output, OutputLike
from cilia.script.errors import CommandFailed, DeadlineExceeded
from cilia.script.files import need
from cilia.script.state import SEPARATORS, Flags, State

# From the interrupt that a program gets at the deadline to the kill that it cannot ignore.
GRACE_S = 0.1


class _Process:
    """A started program; calling it waits for its end and returns its output."""

    def __init__(self, state: State, flags: Flags, args: list[str]) -> None:
        need(args, 1)
        self.state = state
        self.stdout = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __call__
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                args,
                executable=_look_up(state, args[0]),
                cwd=state.cwd,
                env={name: text for name, text in state.env.items() if name not in SEPARATORS},
                stdin=subprocess.DEVNULL,
                stdout=self.stdout,
                stderr=self.stderr,
            )
        except BaseException:
            self.stdout.close()
            self.stderr.close()
            raise

    def __call__(self) -> OutputLike:
        with self.stdout, self.stderr:
            error = self._wait()
            texts = []
            for file in (self.stdout, self.stderr):
                file.seek(0)
                texts.append(txtar.decode(file.read()))
        return Output(texts[0], texts[1], error)

    def _wait(self) -> CommandFailed | None:
        if not self._ended_within(self.state.remaining_s()):
            self.process.send_signal(signal.SIGINT)
            if not self._ended_within(GRACE_S):
                self.process.kill()
            self.process.wait()
            return DeadlineExceeded("interrupted: the script's time is over")
        status = self.process.wait()
        if status < 0:
            return CommandFailed(f"signal: {signal.Signals(-status).name}")
        return CommandFailed(f"exit status {status}") if status else None

    def _ended_within(self, seconds: float) -> bool:
        """Wait on a pidfd, which becomes readable when the process ends: no polling."""
        if self.process.poll() is not None:
            return True
        descriptor = os.pidfd_open(self.process.pid)
        try:
            limit_ms = None if seconds > 1e6 else seconds * 1000
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(limit_ms))
        finally:
            os.close(descriptor)


def _look_up(state: State, program: str) -> str:
    """The program's file: a name without a slash is searched in the PATH of the script."""
    if "/" in program:
        return str(state.path(program))
    for directory in state.env.get("PATH", "").split(":"):
        path = Path(state.cwd, directory, program)
        if directory and path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise CommandFailed(f"exec: {program}: not found in the script's PATH")


def _exec(state: State, flags: Flags, args: list[str]) -> OutputLike:
    return _Process(state, flags, args)()


EXEC = Command(
    "exec",
    "run a program",
    _exec,
    "PROGRAM [ARGUMENT...]",
    ("The script goes on after it, unlike after the exec of a shell.",),
    start=_Process,
)

# SPDX-License-Identifier: Apache-2.0
"""A program that a test starts: its log, its end, and what it said when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class ProgramFailed(Exception):
    """A program did not do what was asked of it; has the end of its log."""


class ProgramEnded(ProgramFailed):
    """It ended before it was ready."""


class Program:
    """One child process, writing to `log`, and killed by the kernel when the test's process dies.

    `detached` programs live on, for clusters that are left running.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        directory: Path | None = None,
        detached: bool = False,
    ) -> None:
        self.name, self.log, self.directory, self.detached = name, log, directory, detached
        self.command = [str(word) for word in command]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        tied = [] if self.detached else ["setpriv", "--pdeathsig", "KILL", "--"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*tied, *self.command],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Probe until the program is ready.

        Raises:
            ProgramEnded: it ended first.
            ProgramFailed: it is not ready in time.
        """
        assert self.process is not None, f"{self.name} was not started"
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.process.poll() is not None:
                raise ProgramEnded(f"{self.name} ended: {self.process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{self.name}: not ready in {timeout_s:.0f} s\n{self.tail()}")
            time.sleep(0.05)

    def tail(self, size_bytes: int = 3000) -> str:
        """The end of what it wrote."""
        text = self.log.read_bytes()[-size_bytes:].decode(errors="replace")
        return f"the end of {self.log}:\n{text}"

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it in an orderly way; after `timeout_s` by force."""
        try:
            self._end(signal.SIGTERM, timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def reap(self, timeout_s: float = 10.0) -> None:
        """Wait for the end of a program that somebody else ends."""
        if self.process is not None:
            self.process.wait(timeout_s)
            self.process = None

    def _end(self, number: int, timeout_s: float | None = None) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            os.kill(self.pid, number)
        self.process.wait(timeout_s)
        self.process = None

# SPDX-License-Identifier: Apache-2.0
"""A `cilia` command in a pseudo-terminal of its own."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import cilia

ROOT = Path(cilia.__file__).resolve().parents[1]


class Terminal:
    """A running command; what it prints is read until an expected text comes."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "cilia", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
        )
        os.close(slave)
        self.seen = ""

    def expect(self, text: str) -> None:
        """Read until a text has come, and forget everything up to its end."""
        while text not in self.seen:
            readable, _, _ = select.select([self._master], [], [], 10)
            assert readable, f"{text!r} did not come; only {self.seen!r}"
            self.seen += os.read(self._master, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def interrupt(self, answer: str) -> None:
        """Send SIGINT until it is answered.

        `input` misses one that comes just before it waits for a key, and sees it with the next.
        """
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            if select.select([self._master], [], [], 1)[0]:
                break
        self.expect(answer)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        os.close(self._master)
        self.process.kill()
        self.process.wait()

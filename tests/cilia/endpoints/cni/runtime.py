# SPDX-License-Identifier: Apache-2.0
"""A container runtime, as far as it runs `cilia-cni`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from tests.patience import PATIENCE

#: The namespace of whoever opens it.
NETNS = "/proc/self/ns/net"
CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "cilia", "type": "cilia-cni"}
CONTAINER, IFNAME = "0f3c", "eth0"


class Answer(NamedTuple):
    """What a runtime gets."""

    status: int
    output: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)

    @property
    def code(self) -> int:
        """The code of an error; an answer that is none fails the test."""
        assert self.status == 1, self
        assert self.json["msg"], self
        return int(self.json["code"])


class Runtime(NamedTuple):
    """Runs the program as container runtimes do."""

    program: Path
    socket: Path

    @property
    def queue(self) -> Path:
        return self.socket.with_name("cni-queue")

    def config(self, **fields: Any) -> bytes:
        """Return a configuration with these fields beside the usual ones."""
        return json.dumps({**CONFIG, "socket-path": str(self.socket), **fields}).encode()

    def start(
        self, command: str, config: bytes | None = None, **variables: str | None
    ) -> subprocess.Popen[bytes]:
        """Start the program; a variable that is None is left out."""
        environment: dict[str, str | None] = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": CONTAINER,
            "CNI_IFNAME": IFNAME,
            "CNI_NETNS": NETNS,
            "CNI_PATH": "/opt/cni/bin",
            **variables,
        }
        process = subprocess.Popen(
            [self.program],
            env={name: value for name, value in environment.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin
        try:
            process.stdin.write(self.config() if config is None else config)
            process.stdin.close()
        except BrokenPipeError:  # it has read enough to refuse
            process.stdin = None
        process.stdin = None
        return process

    def call(self, command: str, config: bytes | None = None, **variables: str | None) -> Answer:
        """Run the program to its end; it says nothing on standard error."""
        process = self.start(command, config, **variables)
        output, errors = process.communicate()
        assert errors == b""
        return Answer(process.returncode, output.decode())

    async def ask(
        self, command: str, config: bytes | None = None, **variables: str | None
    ) -> Answer:
        """As `call`, beside a server in this process."""
        return await anyio.to_thread.run_sync(lambda: self.call(command, config, **variables))


def until(condition: Callable[[], bool]) -> None:
    """Return when the kernel shows what it does not tell of: a process waits, a lock is asked for.

    Raises:
        AssertionError: it does not within some seconds.
    """
    end = time.monotonic() + 5 * PATIENCE
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


def until_waiting(pid: int) -> None:
    """Return when a process waits in a system call."""
    stat = Path(f"/proc/{pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")

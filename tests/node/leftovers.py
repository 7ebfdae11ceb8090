# SPDX-License-Identifier: Apache-2.0
"""What a cluster has made outside itself, in a file, so that any process can remove it.

Each entry is written before the thing is made or as soon as it has a number, and removing is
idempotent: a cluster whose maker was killed is taken down by the next one, or by `make node-down`.
A process is known by its number and its start time, so that a stranger who got the number is safe.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from cilia.linux.netns import NetNS
from tests.kube.programs import Program

from .cgroups import remove_when_empty

RECORDS = Path("/run/cilia-test-clusters")
END_TIMEOUT_S = 20.0


def start_time(pid: int) -> str | None:
    """Clock ticks since boot, field 22 of proc_pid_stat(5); None if it has ended, buried or not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def alive(pid: int, started: str) -> bool:
    """That process, and no other which has its number now."""
    return start_time(pid) == started


class Record:
    """One cluster's record; `maker` is the process that watches over it, 0: it is left running."""

    def __init__(
        self,
        name: str,
        *,
        namespaces: list[str],
        cgroups: list[str],
        maker: int | None = None,
        processes: dict[int, str] | None = None,
        directories: list[str] | None = None,
        maker_started: str | None = None,
    ) -> None:
        self.name, self.namespaces, self.cgroups = name, namespaces, cgroups
        self.maker = os.getpid() if maker is None else maker
        self.maker_started = maker_started or start_time(self.maker)
        self.processes = processes or {}
        self.directories = directories or []

    @property
    def path(self) -> Path:
        return RECORDS / f"{self.name}.json"

    def save(self) -> None:
        RECORDS.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(vars(self), indent=2))
        temporary.rename(self.path)

    @classmethod
    def load(cls, path: Path) -> Record:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields["processes"] = {int(pid): at for pid, at in fields["processes"].items()}
        return cls(fields.pop("name"), **fields)

    def add(self, *programs: Program) -> None:
        for program in programs:
            if program.process is not None:
                pid = program.process.pid
                self.processes[pid] = start_time(pid) or ""
        self.save()

    def abandoned(self) -> bool:
        """Its maker is dead, and it was not left running on purpose."""
        return self.maker != 0 and start_time(self.maker) != self.maker_started

    def remove(self) -> None:
        """End the processes and remove the rest; a node's own end with its first one.

        Raises:
            TimeoutError: a process does not end.
        """
        for pid, started in self.processes.items():
            if alive(pid, started):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + END_TIMEOUT_S
        for pid, started in self.processes.items():
            while alive(pid, started):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name}: process {pid} does not end")
                time.sleep(0.02)
        for namespace in self.namespaces:
            NetNS.remove(namespace)
        for cgroup in self.cgroups:
            remove_when_empty(cgroup, END_TIMEOUT_S)
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
        self.path.unlink(missing_ok=True)


def records() -> list[Record]:
    return [Record.load(path) for path in sorted(RECORDS.glob("*.json"))]

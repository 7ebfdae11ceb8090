# SPDX-License-Identifier: Apache-2.0
"""Our agent as a program of a node, with the API server as its source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cilia.api.client import ApiError, request

from .machine import Machine, NodeProgram

SOCKET = "/run/cilia/cilia.sock"
READY_TIMEOUT_S = 240.0


class Agent:
    """The agent of one node; `program` starts, stops and kills it, and its pins stay."""

    def __init__(self, machine: Machine, kubeconfig: Path, *options: str) -> None:
        self.machine = machine
        self.program: NodeProgram = machine.program(
            *("agent", sys.executable, "-m", "cilia", "agent", "--log-format=json"),
            *(f"--node-name={machine.name}", f"--k8s-kubeconfig-path={kubeconfig}"),
            f"--cgroup-root={machine.group}",
            *options,
        )

    def start(self) -> None:
        """Returns when its inputs are complete and in force."""
        self.program.start()
        self.program.wait_until(self.synchronised, READY_TIMEOUT_S)

    def stop(self) -> None:
        self.program.stop()

    def kill(self) -> None:
        self.program.kill()

    def get(self, url: str) -> Any:
        return request(str(self.machine.path(SOCKET)), url)

    def synchronised(self) -> bool:
        try:
            return bool(self.get("/status")["synchronised"])
        except ApiError:  # nobody listens yet, or it is too busy to answer
            return False

    def rows(self, table: str) -> list[Any]:
        """All rows of a table."""
        found: list[Any] = self.get(f"/statedb/dump/{table}")["tables"][table]
        return found

    def frontends(self, namespace: str, name: str) -> list[Any]:
        """The rows of one Service."""
        rows = self.rows("frontends")
        return [row for row in rows if row["ServiceName"] == f"{namespace}/{name}"]

    def pins(self) -> list[Path]:
        """What the agent has pinned on the node: programs, links, maps."""
        return sorted(self.machine.path("/sys/fs/bpf/cilia").rglob("*"))

    def cilia(self, *arguments: str) -> str:
        """The `cilia` command on the node. Raises: RuntimeError if it fails."""
        return self.machine.run(sys.executable, "-m", "cilia", *arguments)

# SPDX-License-Identifier: Apache-2.0
"""Operators as processes of their own, against the API server of the tests."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from .programs import Program


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Replica:
    """One `cilia operator`; `status` is what its readiness probe is told."""

    def __init__(self, directory: Path, name: str, kubeconfig: Path, *flags: str) -> None:
        self.api, self.metrics = free_port(), free_port()
        command = [
            *(sys.executable, "-m", "cilia", "operator", "--log-format=json"),
            f"--k8s-kubeconfig-path={kubeconfig}",
            f"--operator-api-serve-addr=:{self.api}",
            f"--operator-prometheus-serve-addr=:{self.metrics}",
            *flags,
        ]
        repository = Path(__file__).resolve().parents[2]
        self.program = Program(name, command, directory / f"{name}.log", directory=repository)

    def get(self, path: str, port: int | None = None) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.api}{path}", timeout=5) as got:
            return str(got.read().decode())

    @property
    def status(self) -> dict[str, Any]:
        """Empty while nothing answers or no leader is known."""
        try:
            status: dict[str, Any] = json.loads(self.get("/readyz"))
        except OSError:
            return {}
        return status

    @property
    def leading(self) -> bool:
        return bool(self.status.get("leading"))

    def start(self) -> None:
        self.program.start()
        self.program.wait_until(lambda: bool(self.status), 30)

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()

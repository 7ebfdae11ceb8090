# SPDX-License-Identifier: Apache-2.0
"""Who asks a Service: a pod, a program of a node, or a machine outside the cluster.

A pod's client is started in the pod's namespaces and control group from outside, so that it goes on
when kubelet, containerd or the API server are restarted under it, and costs no `kubectl exec`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.kube.assets import asset


class NoAnswer(Exception):
    """A request failed; the text is what the client said."""


@dataclass(frozen=True)
class Answer:
    """Which pod answered, whom it saw as its client, and the port that it was reached at."""

    pod: str
    client: str
    port: str

    @property
    def client_address(self) -> str:
        return self.client.rpartition(":")[0].strip("[]")


@dataclass(frozen=True)
class Caller:
    """`enter` is the command before the workload's path; together they start a client there."""

    name: str
    enter: Sequence[str]
    workload: str

    def ask(self, *urls: str, times: int = 1, wait_s: float = 3.0) -> list[Answer]:
        """The answers of each address, `times` in turn; each request on a connection of its own.

        Raises:
            NoAnswer: the first one that fails.
        """
        command = [*self.enter, self.workload, "ask", f"--times={times}", f"--wait={wait_s}s"]
        done = subprocess.run([*command, *urls], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoAnswer(f"{self.name}: {done.stderr.strip()}")
        return [Answer(**json.loads(line)) for line in done.stdout.splitlines()]

    def run(self, *words: str) -> str:
        """Another command in its place, whatever it returns; what it printed."""
        done = subprocess.run([*self.enter, *words], capture_output=True, text=True, check=False)
        return done.stdout

    def pods(self, *urls: str, times: int = 1) -> set[str]:
        """Which pods answer."""
        return {answer.pod for answer in self.ask(*urls, times=times)}

    def reaches(self, url: str, pods: set[str]) -> bool:
        """Whether these pods answer and no others; twenty requests find out."""
        try:
            return self.pods(url, times=20) == pods
        except NoAnswer:
            return False

    def answers(self, url: str, times: int = 1) -> bool:
        """Whether it is answered so often, within a second each."""
        try:
            self.ask(url, times=times, wait_s=1.0)
        except NoAnswer:
            return False
        return True

    def switch(self, path: str) -> None:
        """Tell the server of this pod: `readyz/fail`, `healthz/recover`."""
        url = f"http://127.0.0.1:8080/{path}"
        subprocess.run([*self.enter, self.workload, "ask", url], check=True)

    def load(self, *urls: str, rate: int = 200) -> Load:
        """Start asking the addresses in turn, `rate` requests a second in all."""
        return Load([*self.enter, self.workload, "load", f"--rate={rate}", *urls])


class Load:
    """Requests that go on until `stop`; also ends with the test's process, with its input."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        first = self._process.stderr.readline()
        assert first == "started\n", first + self._process.stderr.read()

    def stop(self) -> Any:
        """What became of the requests: `sent`, `failed`, `errors`, `pods`, `gap_ms`..."""
        said, errors = self._process.communicate("", timeout=120)
        assert self._process.returncode == 0, errors
        return json.loads(said)


def in_namespaces(pid: int, procs: str, *namespaces: str) -> list[str]:
    """The command prefix that joins a control group and some namespaces of a process."""
    join = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', procs]
    return [*join, "nsenter", f"--target={pid}", *(f"--{name}" for name in namespaces), "--"]


def outside(namespace: str) -> Caller:
    """A machine that is no part of the cluster and runs nothing of ours."""
    enter = ["nsenter", f"--net=/run/netns/{namespace}", "--"]
    return Caller("outside", enter, str(asset("workload")))

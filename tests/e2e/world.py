# SPDX-License-Identifier: Apache-2.0
"""A world for one agent: a network namespace without a way out, a cgroup, a bpffs, a directory.

Backends are addresses of the namespace's loopback; the service ranges have an `unreachable` route,
so that what is not translated goes nowhere. All of it is removed at the end, also after a failure.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from cilia.api.client import AgentUnreachable, request
from cilia.linux.cgroup import find_cgroup2
from cilia.linux.netns import NetNS
from tests.patience import PATIENCE

POD_V4 = [f"10.204.0.{n}" for n in range(1, 5)]
POD_V6 = [f"fd00:204::{n}" for n in range(1, 5)]
GUARDED = ["10.203.0.0/16", "fd00:203::/64"]
# Preallocated maps: those of a node's size take half a gigabyte.
SMALL_MAPS = [
    "--bpf-ct-global-tcp-max=4096",
    "--bpf-ct-global-any-max=4096",
    "--bpf-nat-global-max=4096",
    "--bpf-fragments-map-max=256",
]
REPOSITORY = Path(__file__).resolve().parents[2]


class Inside:
    """The process inside the namespace; `inside.tcp("10.0.0.1", 80)` runs `tcp` there."""

    def __init__(self, namespace: str, cgroup: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("inside.py")), namespace, str(cgroup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        assert json.loads(self.output.readline()) == "ready"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.input.write(json.dumps({"call": name, "args": args}) + "\n")
            self.input.flush()
            return json.loads(self.output.readline())

        return call

    def close(self) -> None:
        self.input.close()
        self.process.wait(10)
        self.output.close()


class World:
    """What a test of the whole agent sees; made by `world()`."""

    def __init__(self, directory: Path, namespace: str, cgroup: Path, inside: Inside) -> None:
        self.directory, self.namespace, self.cgroup, self.inside = (
            directory,
            namespace,
            cgroup,
            inside,
        )
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        # Flags that say where objects come from.
        self.source = [f"--k8s-manifests={self.manifests}"]
        self.state_dir = directory / "state"
        self.bpf_root = directory / "bpf"
        self.bpf_root.mkdir()
        self.agents: list[subprocess.Popen[bytes]] = []
        #: The program that is the agent.
        self.program = [sys.executable, "-m", "cilia"]

    def write(self, name: str, text: str) -> None:
        """Replace a manifest file atomically, as editors do."""
        temporary = self.manifests / f".{name}.tmp"
        temporary.write_text(text)
        temporary.rename(self.manifests / name)

    def command(self, *extra: str) -> list[str]:
        return [
            *(*self.program, "agent", "--log-format=json"),
            f"--instance={self.namespace}",
            *self.source,
            f"--state-dir={self.state_dir}",
            f"--bpf-root={self.bpf_root}",
            f"--cgroup-root={self.cgroup}",
            *SMALL_MAPS,
            *extra,
        ]

    def entering(self) -> list[str]:
        """In front of the command: in here an agent attaches to no device of the machine."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]

    def start_agent(self, *extra: str) -> subprocess.Popen[bytes]:
        with open(self.directory / "agent.log", "ab") as log:
            process = subprocess.Popen(
                [*self.entering(), *self.command(*extra)],
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.agents.append(process)
        return process

    def kill_agent(self) -> None:
        self.agents[-1].send_signal(signal.SIGKILL)
        self.agents[-1].wait()

    def get(self, url: str) -> Any:
        return request(str(self.state_dir / "cilia.sock"), url)

    def cilia(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `cilia` command against this world's agent."""
        socket = f"--socket={self.state_dir / 'cilia.sock'}"
        return subprocess.run(
            [sys.executable, "-m", "cilia", f"--instance={self.namespace}", socket, *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    def eventually(self, what: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait until `what()` is true, looking often; fails with the logs of the agents."""
        deadline = time.monotonic() + timeout_s * PATIENCE
        while not what():
            if time.monotonic() > deadline:
                logs = [path.read_text()[-4000:] for path in sorted(self.directory.glob("*.log"))]
                raise AssertionError("\n".join([f"not within {timeout_s} s; agents' logs:", *logs]))
            time.sleep(0.01)

    def ready(self) -> bool:
        """The agent has reconciled its inputs."""
        try:
            return bool(self.get("/status")["synchronised"])
        except AgentUnreachable:
            return False

    def close(self) -> None:
        for process in self.agents:
            if process.poll() is None:
                process.terminate()
                process.wait(10 * PATIENCE)
        done = self.cilia("cleanup", f"--state-dir={self.state_dir}", f"--bpf-root={self.bpf_root}")
        assert done.returncode == 0, done.stderr


@contextmanager
def world(directory: Path, name: str) -> Iterator[World]:
    namespace = f"cilia-test-{name}-{os.getpid()}"
    cgroup_root = find_cgroup2()
    assert cgroup_root is not None, "no cgroup2 hierarchy is mounted"
    cgroup = cgroup_root / namespace
    with ExitStack() as stack:
        stack.callback(NetNS.remove, namespace)
        with NetNS.create(namespace) as created:
            created.run(_network_inside)
        cgroup.mkdir()
        stack.callback(cgroup.rmdir)
        inside = Inside(namespace, cgroup)
        stack.callback(inside.close)
        made = World(directory, namespace, cgroup, inside)
        stack.callback(made.close)
        yield made


def _network_inside() -> None:
    with IPRoute() as ipr:
        (lo,) = ipr.link_lookup(ifname="lo")
        ipr.link("set", index=lo, state="up")
        for address in POD_V4:
            ipr.addr("add", index=lo, address=address, prefixlen=32)
        for address in POD_V6:
            ipr.addr("add", index=lo, address=address, prefixlen=128)
        for guarded in GUARDED:
            family = socket.AF_INET6 if ":" in guarded else socket.AF_INET
            ipr.route("add", dst=guarded, type="unreachable", family=family)

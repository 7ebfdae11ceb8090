# SPDX-License-Identifier: Apache-2.0
"""What an agent stands on, and everything that somebody may do to it: a table of thing × deed.

A thing is a file, directory, pin, mount, socket, device or cgroup. It is removed, emptied, renamed,
mounted over or replaced, once under a running agent and once before a start, while clients connect
through a Service: those of the node's cgroup by the programs of sockets, one outside by those of
devices. Afterwards everything must be as before, or the status must say what is wrong until that is
undone.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bpf.errors import BPFError
from bpf.link import Link
from bpf.maps.map import Map
from bpf.program import Program
from cilia.api.client import ApiError
from cilia.linux.mounts import mount
from cilia.linux.netns import NetNS
from tests.bpf.world import unmount
from tests.e2e.manifests import endpoint_slice, service
from tests.e2e.world import POD_V4, World, world
from tests.kernel import Kernel, new_kernel
from tests.patience import PATIENCE

ADDRESS, NODE, CLIENT, NODE_PORT = "10.203.0.10", "192.0.2.1", "192.0.2.9", 30080
#: The status names it, or it is whole again, within this time.
TOLD_S = 6.0
#: An agent that cannot start says so within this time.
REFUSED_S = 10.0

Undo = Callable[[], object]


class Row(NamedTuple):
    """One thing, and what is done to it."""

    thing: str
    deed: str
    do: Callable[[Ground], Undo]
    #: What the status or the log says until it is undone; empty: it is made whole.
    says: str = ""
    #: A start in this state ends with a sentence.
    refused: bool = False
    #: False where the thing is what traffic goes through.
    traffic: bool = True

    @property
    def name(self) -> str:
        return f"{self.thing}, {self.deed}"


class Outside:
    """A client on another machine that connects to the node port, again and again."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._end = kernel, threading.Event()
        self.connections, self.failures = 0, list[str]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(0.02):
            try:
                connect(self._kernel)
                self.connections += 1
            except OSError as error:
                self.failures.append(str(error))

    def stop(self) -> list[str]:
        self._end.set()
        self._thread.join(5)
        return self.failures


def connect(kernel: Kernel, timeout_s: float = 3.0) -> None:
    """Raises: OSError."""
    with kernel.netns.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((NODE, NODE_PORT))


class Ground:
    """The world with a device to an outside client, and an agent that is well."""

    def __init__(self, w: World, node: Kernel, client: Kernel) -> None:
        self.world, self.node, self.client = w, node, client
        self.pin_dir = w.bpf_root / w.namespace
        self._resting: set[str] = set()
        self._log_before = 0
        w.write(
            "echo.yaml",
            service("echo", ADDRESS)
            .replace("spec:", "spec:\n  type: NodePort", 1)
            .replace("protocol: TCP, port: 80,", f"protocol: TCP, port: 80, nodePort: {NODE_PORT},")
            + "---\n"
            + endpoint_slice("echo", POD_V4[:2]),
        )
        self.start()
        w.eventually(lambda: self.healthy() and len(self._pins("attachments")) == 2)
        self._resting = self._pins()

    # -- the agent --

    def start(self) -> None:
        self._log_before = len(self.log())
        self.world.start_agent("--devices=dev0", "--lb-verify-interval-s=1")

    def log(self) -> str:
        path = self.world.directory / "agent.log"
        return path.read_text() if path.exists() else ""

    # -- what holds when all is well --

    def healthy(self) -> bool:
        try:
            return bool(self.world.get("/status")["healthy"])
        except (ApiError, OSError):
            return False

    def whole(self) -> bool:
        """All pins are there, the status is well, and both clients are answered."""
        if '"synchronised"' not in self.log()[self._log_before :]:
            return False  # it may still pin its programs
        if not self.healthy() or not self._pins() >= self._resting:
            return False
        if "answer" not in self.world.inside.tcp(ADDRESS, 80):
            return False
        try:
            connect(self.client, 0.3)
        except OSError:
            return False
        return True

    def difference(self) -> str:
        """Why it is not whole."""
        with suppress(ApiError, OSError):
            status = self.world.get("/status")
            told = {key: status[key] for key in ("synchronised", "degraded", "problems")}
            return f"{told}, pins {self._resting - self._pins()}"
        return "no agent answers"

    def tells(self, text: str, since: int) -> bool:
        """The status has these words, or the log where no status can be asked for."""
        with suppress(ApiError, OSError):
            status = self.world.get("/status")
            rows = [*status["degraded"], *status["problems"], *status["others"]["programs"]]
            return bool(re.search(text, str(rows)))
        return bool(re.search(text, self.log()[since:]))

    def pins(self) -> list[str]:
        """All pins below the directory of the instance when it was at rest."""
        return sorted(self._resting)

    def objects(self) -> dict[str, int]:
        """The kernel's number of the object under each pin; -1: it is of another kind."""
        return {pin: _number(self.pin_dir / pin) for pin in sorted(self._resting)}

    def _pins(self, below: str = "") -> set[str]:
        found = (self.pin_dir / below).rglob("*")
        return {str(p.relative_to(self.pin_dir)) for p in found if not p.is_dir()}

    # -- a row --

    def under_a_running_agent(self, row: Row) -> list[str]:
        """What was wrong; nothing: all as it should be."""
        w = self.world
        wrong = []
        pid = w.agents[-1].pid
        inside, outside = w.inside.loop_start(ADDRESS, 80, 50.0), Outside(self.client)
        since, objects = len(self.log()), self.objects()

        def as_before() -> bool:
            return self.whole() and (not row.traffic or self.objects() == objects)

        undo = row.do(self)
        if row.says and not self._until(lambda: self.tells(row.says, since)):
            wrong.append(f"{row.says!r} is not told: {self.difference()}")
        elif not row.says and not self._until(as_before):
            wrong.append(f"not made whole: {self.difference()}")
        undo()
        if not self._until(as_before):
            wrong.append(f"not whole after it was undone: {self.difference()}")
        if w.agents[-1].poll() is not None or w.agents[-1].pid != pid:
            wrong.append("the agent ended")
        w.kill_agent()  # all that is in force must be pinned again
        answered = w.inside.loop_count(inside)
        self._until(lambda: w.inside.loop_count(inside) > answered + 5)
        self.start()
        if not self._until(self.whole, REFUSED_S):
            wrong.append(f"the next start does not make it whole: {self.difference()}")
        failures = [*w.inside.loop_stop(inside)["failures"], *outside.stop()]
        if row.traffic and failures:
            wrong.append(f"{len(failures)} connections failed: {failures[:3]}")
        return wrong

    def before_a_start(self, row: Row) -> list[str]:
        w, says = self.world, row.says
        wrong = []
        w.kill_agent()
        since = len(self.log())
        undo = row.do(self)
        self.start()
        agent = w.agents[-1]
        if row.refused:
            if not self._until(lambda: agent.poll() is not None, REFUSED_S):
                wrong.append("the start is not refused")
            elif agent.wait() != 1 or "Traceback" in self.log()[since:]:
                wrong.append(f"the start does not end with a sentence: {self.log()[since:][-500:]}")
        elif says:
            if not self._until(lambda: self.tells(says, since), REFUSED_S):
                wrong.append(f"{says!r} is not told: {self.difference()}")
        elif not self._until(self.whole, REFUSED_S):
            wrong.append(f"not made whole by a start: {self.difference()}")
        undo()
        if agent.poll() is not None:
            self.start()
        if not self._until(self.whole, REFUSED_S):
            wrong.append(f"not whole after it was undone: {self.difference()}")
        if "Traceback" in self.log()[since:]:
            wrong.append(f"a traceback: {self.log()[since:][-1500:]}")
        return wrong

    def _until(self, what: Callable[[], bool], timeout_s: float = TOLD_S) -> bool:
        deadline = time.monotonic() + timeout_s * PATIENCE
        while not what():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


@contextmanager
def ground(directory: Path, name: str) -> Iterator[Ground]:
    """Make everything; all of it is removed at the end, also after a failure."""
    with ExitStack() as stack:
        client = stack.enter_context(new_kernel())
        stack.callback(unmount_all, directory / "bpf")
        w = stack.enter_context(world(directory, name))
        node = Kernel(stack.enter_context(NetNS.named(w.namespace)))
        plug(node, client)
        for address in POD_V4[:2]:
            w.inside.serve(address, address, 8080)
        yield Ground(w, node, client)


def plug(node: Kernel, client: Kernel) -> None:
    """The device of the node, and the client behind it."""
    node.ip_batch(
        [
            f"link add dev0 type veth peer name eth0 netns {client.netns.path}",
            f"addr add {NODE}/24 dev dev0",
            "link set dev0 up",
        ]
    )
    client.ip_batch([f"addr add {CLIENT}/24 dev eth0", "link set eth0 up"])


def _number(pin: Path) -> int:
    try:
        if pin.parent.name == "maps":
            with Map.open_pinned(pin) as opened:
                return opened.info.id
        if pin.parent.name == "programs":
            with Program.open_pinned(pin) as program:
                return program.info().id
        with Link.open_pinned(pin) as link:
            return link.info().id
    except BPFError:
        return -1


# -- deeds --


def nothing() -> None:
    """There is nothing to undo."""


def remove(path: Path) -> Undo:
    """What is not there, because an agent before a lost record cannot have it, is gone already."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return nothing


def empty(path: Path) -> Undo:
    if path.is_dir():
        for inside in path.iterdir():
            remove(inside)
    elif path.exists():
        os.truncate(path, 0)
    return nothing


def rename(path: Path) -> Undo:
    """Out of the way, where it stays as long as the row lasts."""
    away = path.with_name(path.name + "-away")
    if path.exists():
        path.rename(away)
    return lambda: remove(away)


def rename_and_back(path: Path) -> Undo:
    away = path.with_name(path.name + "-away")
    path.rename(away)
    return lambda: away.rename(path)


def shadow(path: Path) -> Undo:
    """Mount another directory over it."""
    mount("tmpfs", path)
    return lambda: unmount_all(path)


def unmount_all(path: Path) -> None:
    """Also what an agent mounted on top, or that no record tells of any more."""
    while path.is_mount():
        unmount(path)


def put_directory(path: Path) -> Undo:
    """A directory where a file was."""
    undo = rename(path)
    path.mkdir()

    def back() -> None:
        if path.is_dir():
            remove(path)
        undo()

    return back

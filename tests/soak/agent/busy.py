# SPDX-License-Identifier: Apache-2.0
"""Threads around the agent: who writes objects, changes the network, talks, looks and watches."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import quote

from cilia.api.client import request_text
from statedb.errors import StateDBError
from statedb.web.remote import RemoteDB
from tests.e2e.nodes import FAMILIES, Connection, node_address
from tests.e2e.passes import KINDS, LOCAL, REMOTE, Asked
from tests.kernel import Kernel
from tests.soak.agent.objects import Form, Objects, Place
from tests.soak.agent.stores import Store

#: Steps a second of each thread, about.
RATES = {"objects": 20.0, "network": 2.0, "clients": 40.0, "commands": 0.3, "watches": 2.0}
HELD_CONNECTIONS = 20
DEVICES = 3
NAMES_KEPT = 8
ANSWER_S = 5.0
#: A reader of changes goes after this time without any.
SILENCE_S = 0.5


class Busy(threading.Thread):
    """Does one step after the other at a rate until it is stopped; an exception ends it."""

    def __init__(self, name: str, step: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.steps = 0
        self.failure: BaseException | None = None
        self._step = step
        self._rng = random.Random(name)
        self._pause_s = 1 / RATES[name]
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self._rng.uniform(0, 2 * self._pause_s)):
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001 - told by `check`
                self.failure = error
                return
            self.steps += 1

    def end(self) -> None:
        self._stopping.set()
        self.join(60)

    def check(self) -> None:
        """Raises: RuntimeError if a step failed."""
        if self.failure is not None:
            raise RuntimeError(f"{self.name} failed after {self.steps} steps") from self.failure


class Writer:
    """Objects appear, change and go: two places in three are taken in the long run."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store = store
        self._objects = Objects(rng)
        self._rng = rng
        self._there: dict[Place, Form] = {}

    def step(self) -> None:
        place = self._objects.any_place()
        form = self._there.get(place)
        if form is None:
            form = self._objects.appear(place)
        elif self._rng.random() < 0.5:
            return self._remove(place)
        else:
            form = self._objects.change(place)
        self._there[place] = form
        self.store.put(form)
        self.store.disturb(self._rng)
        return None

    def clear(self) -> None:
        """Take away all that there is."""
        for place in list(self._there):
            self._remove(place)
        self.store.calm()

    def _remove(self, place: Place) -> None:
        self.store.remove(self._there.pop(place))


class Network:
    """Devices, addresses and routes of the node come and go."""

    def __init__(self, node: Kernel, rng: random.Random) -> None:
        self._node = node
        self._rng = rng
        self._devices: set[int] = set()
        self._addresses: set[int] = set()
        self._routes: set[int] = set()

    def step(self) -> None:
        self._rng.choice((self._device, self._address, self._route))()

    def clear(self) -> None:
        """Take away all that there is."""
        for number in list(self._devices):
            self._node.ip(f"link del churn{number}")
        for number in list(self._addresses):
            self._node.ip(f"addr del 192.0.2.{60 + number}/24 dev eth0")
        for number in list(self._routes):
            self._node.ip(f"route del 198.19.{number}.0/24 via {node_address(2, 4)}")

    def _device(self) -> None:
        number = self._rng.randrange(DEVICES)
        if _turn(self._devices, number):
            lines = [
                f"link add churn{number} type veth peer name nruhc{number}",
                f"addr add 198.18.{number}.1/24 dev churn{number}",
                f"link set churn{number} up",
                f"link set nruhc{number} up",
            ]
        else:
            lines = [f"link del churn{number}"]
        self._node.ip_batch(lines)

    def _address(self) -> None:
        number = self._rng.randrange(NAMES_KEPT)
        word = "add" if _turn(self._addresses, number) else "del"
        self._node.ip(f"addr {word} 192.0.2.{60 + number}/24 dev eth0")

    def _route(self) -> None:
        number = self._rng.randrange(NAMES_KEPT)
        word = "add" if _turn(self._routes, number) else "del"
        self._node.ip(f"route {word} 198.19.{number}.0/24 via {node_address(2, 4)}")


def _turn(there: set[int], number: int) -> bool:
    """Flip a member; True if it is one now."""
    there.symmetric_difference_update({number})
    return number in there


class Clients:
    """Ask the fixed Services: by packets from outside and by sockets of the node, on new
    connections and on some that stay open."""

    def __init__(self, w: Asked, rng: random.Random) -> None:
        self._w = w
        self._rng = rng
        self._held: deque[Connection] = deque()
        self.answers = 0
        self.failures: Counter[str] = Counter()

    def step(self) -> None:
        service, family = self._rng.choice((LOCAL, REMOTE)), self._rng.choice(FAMILIES)
        name, kind = self._rng.choice(list(KINDS.items()))
        where = self._rng.choice(("NodePort", "LoadBalancer", "ExternalIP", "ClusterIP", "held"))
        try:
            if where == "held":
                self._ask_held()
            elif where == "ClusterIP":
                self._ask_socket(*service.frontend(where, family), kind)
            else:
                self._ask_packets(*service.frontend(where, family), kind)
            self.answers += 1
        except OSError as error:
            self.failures[f"{where} {name} IPv{family}: {error}"] += 1

    def _ask_packets(self, address: str, port: int, kind: int) -> None:
        """The connection stays open; the oldest is closed then."""
        client = self._w.nodes.client
        connection = Connection(client, address, port, kind, timeout_s=ANSWER_S)
        self._held.append(connection)
        connection.ask()
        if len(self._held) > HELD_CONNECTIONS:
            self._held.popleft().close()

    def _ask_held(self) -> None:
        if self._held:
            self._rng.choice(self._held).ask()

    def _ask_socket(self, address: str, port: int, kind: int) -> None:
        inside = self._rng.choice((self._w.inside, self._w.inside_pod))
        assert inside is not None
        answer = inside.framed(address, port, kind, ANSWER_S)
        if isinstance(answer, dict):
            raise OSError(answer["errno"], answer["error"])

    def close(self) -> None:
        for connection in self._held:
            connection.close()


class Commands:
    """People who look: one `cilia` after the other. A command may refuse, and must not hang."""

    COMMANDS: Sequence[Sequence[str]] = (
        ("status",),
        ("service", "list"),
        ("db", "show", "frontends"),
        ("db", "show", "problems", "-o", "json"),
        ("db", "show", "health"),
        ("db", "show", "convergence"),
        ("lb", "explain", "192.0.2.9:40000", "test/remote:tcp", "--bpf-root={bpf_root}"),
        ("bpf", "ct", "list", "--bpf-root={bpf_root}"),
        ("config", "--changed"),
        ("lrp", "list"),
        ("shell", "db/show", "k8s-pods"),
    )

    def __init__(self, w: Asked, rng: random.Random) -> None:
        self._w, self._rng = w, rng
        self.codes: Counter[str] = Counter()

    def step(self) -> None:
        command = self._rng.choice(self.COMMANDS)
        done = self._w.cilia(*(word.format(bpf_root=self._w.bpf_root) for word in command))
        self.codes[f"{' '.join(command[:2])}: {done.returncode}"] += 1


class Watches:
    """Readers of the agent's API that come and go: streams of changes that are dropped, queries,
    requests that are never finished, and readers that take nothing."""

    def __init__(self, path: str, rng: random.Random) -> None:
        self._path, self._rng = path, rng
        self._tables: list[str] = []
        self._held: deque[socket.socket] = deque()
        self.lines = 0
        self.ended: Counter[str] = Counter()

    def step(self) -> None:
        self._tables = self._tables or [
            table["name"] for table in RemoteDB(self._path).summary()["tables"]
        ]
        try:
            self._rng.choice((self._follow, self._query, self._silent, self._half))()
        except (OSError, StateDBError) as error:
            self.ended[type(error).__name__] += 1

    def _follow(self) -> None:
        """Read changes until there are none for a while."""
        changes = (
            RemoteDB(self._path, timeout_s=SILENCE_S)
            .table(self._rng.choice(self._tables))
            .changes()
        )
        for _ in zip(range(self._rng.randrange(1, 40)), changes, strict=False):
            self.lines += 1
        changes.close()  # type: ignore[attr-defined]

    def _query(self) -> None:
        table = quote(self._rng.choice(self._tables))
        self.lines += request_text(self._path, f"/statedb/query?table={table}", timeout_s=60).count(
            "\n"
        )

    def _silent(self) -> None:
        """Ask for a stream and take nothing of it, for a while."""
        table = self._rng.choice(self._tables)
        self._hold(f"GET /statedb/changes/{table} HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def _half(self) -> None:
        self._hold("GET /statedb/dump HTTP/1.1\r\nHo")

    def _hold(self, text: str) -> None:
        connection = socket.socket(socket.AF_UNIX)
        self._held.append(connection)
        connection.connect(self._path)
        connection.sendall(text.encode())
        if len(self._held) > 8:
            self._held.popleft().close()

    def close(self) -> None:
        for connection in self._held:
            connection.close()


@contextmanager
def busy(steps: dict[str, Callable[[], None]]) -> Iterator[dict[str, Busy]]:
    """A thread for each; all are ended with the block.

    Raises: RuntimeError when one of them failed.
    """
    threads = {name: Busy(name, step) for name, step in steps.items()}
    for thread in threads.values():
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads.values():
            thread.end()
        for thread in threads.values():
            thread.check()

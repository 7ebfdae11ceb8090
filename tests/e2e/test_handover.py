# SPDX-License-Identifier: Apache-2.0
"""A node's Services go from another proxy to us and back, under traffic; no request fails."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.handover import (
    CLUSTER_IP,
    CLUSTER_PORT,
    NODE,
    NODE_PORT,
    REMOTE,
    TARGET_PORT,
    Handover,
    handover,
)
from tests.e2e.world import Inside

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SERVICE, OUTSIDE = (CLUSTER_IP, CLUSTER_PORT), (NODE, NODE_PORT)
# Together 200 requests a second.
RATES = {"host": 50, "pod": 50, "outside": 100}
SOME = 50  # requests that are seen through each state
STREAMS = 4  # at each way in: both backends have some, but for one time in eight
ANSWERS = {"server", "remote"}


class Way:
    """One place that asks, and what it asks."""

    def __init__(self, inside: Inside, target: tuple[str, int], rate: float) -> None:
        self.inside, self.target = inside, target
        self.loop = inside.loop_start(*target, rate)

    def count(self) -> int:
        return int(self.inside.loop_count(self.loop))

    def streams(self) -> list[Stream]:
        return [Stream(self.inside, self.target) for _ in range(STREAMS)]


class Stream:
    """A connection that stays, and who answered it first."""

    def __init__(self, inside: Inside, target: tuple[str, int], source_port: int = 0) -> None:
        self.inside = inside
        self.number = inside.stream_open(*target, source_port)
        self.server = self.ask()
        assert self.server in ANSWERS

    def ask(self) -> str:
        return str(self.inside.stream_ask(self.number))

    @property
    def port(self) -> int:
        return int(self.inside.stream_port(self.number))

    def close(self) -> None:
        self.inside.stream_close(self.number)


class Traffic:
    """All ways at once, and the streams that were begun on them."""

    def __init__(self, made: Handover) -> None:
        self.world = made.world
        self.insides = {"host": made.world.inside, "pod": made.caller, "outside": made.client}
        self.ways = [
            Way(inside, OUTSIDE if side == "outside" else SERVICE, RATES[side])
            for side, inside in self.insides.items()
        ]
        self.begun: list[list[Stream]] = []

    def goes_on(self) -> None:
        """Requests are answered everywhere, on streams of all times too; then some begin."""
        goals = [way.count() + SOME for way in self.ways]
        for way, goal in zip(self.ways, goals, strict=True):
            self.world.eventually(lambda way=way, goal=goal: way.count() >= goal)  # type: ignore[misc]
        self.check_streams()
        self.begun.append([stream for way in self.ways for stream in way.streams()])

    def close_first(self, side: str) -> None:
        """The streams of the first time that were begun there."""
        closed = [stream for stream in self.begun[0] if stream.inside is self.insides[side]]
        for stream in closed:
            stream.close()
            self.begun[0].remove(stream)

    def check_streams(self) -> None:
        streams = [stream for time in self.begun for stream in time]
        assert [stream.ask() for stream in streams] == [stream.server for stream in streams]

    def failures(self) -> Sequence[str]:
        return [
            failure for way in self.ways for failure in way.inside.loop_stop(way.loop)["failures"]
        ]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Handover]:
    with handover(tmp_path) as built:
        yield built


def test_services_are_taken_over_and_handed_back_without_a_failed_request(made: Handover) -> None:
    w = made.world
    made.add_rules()
    traffic = Traffic(made)
    traffic.goes_on()

    w.start_agent("--devices=eth0")
    w.eventually(w.ready, 30)
    w.eventually(lambda: made.status()["packets"] > 0)
    assert made.status()["state"] == "take_over"
    traffic.goes_on()
    made.remove_rules()
    traffic.goes_on()

    w.kill_agent()
    traffic.goes_on()
    w.start_agent("--devices=eth0")
    w.eventually(w.ready, 30)

    made.add_rules()
    assert made.connections_of_rules() == dict.fromkeys(RATES, 0)
    done = w.cilia("replacement", "off", "--wait", "--wait-duration=0")
    assert done.returncode == 1, done.stdout + done.stderr  # streams are left
    traffic.goes_on()
    assert min(made.connections_of_rules().values()) >= SOME
    assert "handed back" in w.cilia("status").stdout

    w.kill_agent()
    traffic.goes_on()
    w.start_agent("--devices=eth0")
    w.eventually(w.ready, 30)
    assert made.status()["state"] == "hand_back"

    for stream in [stream for time in traffic.begun[1:4] for stream in time]:
        stream.close()
    del traffic.begun[1:4]
    done = w.cilia("replacement", "off", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    w.agents[-1].terminate()
    w.agents[-1].wait()
    done = w.cilia("cleanup", f"--state-dir={w.state_dir}", f"--bpf-root={w.bpf_root}")
    assert done.returncode == 0, done.stderr
    traffic.goes_on()
    assert traffic.failures() == []


def test_a_clean_up_hands_back_first_and_breaks_nothing(made: Handover) -> None:
    w = made.world
    w.start_agent("--devices=eth0")
    w.eventually(w.ready, 30)
    traffic = Traffic(made)
    traffic.goes_on()
    w.kill_agent()
    made.add_rules()

    def clean() -> subprocess.CompletedProcess[str]:
        places = (f"--state-dir={w.state_dir}", f"--bpf-root={w.bpf_root}")
        return w.cilia("cleanup", "--hand-back=60", *places)

    with ThreadPoolExecutor() as pool:
        cleaning = pool.submit(clean)
        w.eventually(lambda: min(made.connections_of_rules().values()) > 0)
        traffic.goes_on()
        assert not cleaning.done(), "packets of streams from outside are translated here"
        traffic.close_first("outside")
        done = cleaning.result()
    assert done.returncode == 0, done.stderr
    assert f"{STREAMS} connections of packets are translated here" in done.stdout
    traffic.goes_on()  # also on the streams that sockets of node and pod have had all the time
    assert traffic.failures() == []


def test_a_connection_of_the_node_from_a_clients_port_is_waited_for(made: Handover) -> None:
    """It got another port here, and would end with what translates it."""
    w = made.world
    w.start_agent("--devices=eth0")
    w.eventually(w.ready, 30)
    client = client_of_remote(made)
    own = Stream(w.inside, (REMOTE, TARGET_PORT), client.port)
    client.close()

    done = w.cilia("replacement", "off", "--wait", "--wait-duration=0")
    assert done.returncode == 1, done.stdout + done.stderr
    w.eventually(lambda: made.status()["packets"] == 1)
    assert own.ask() == "remote"
    own.close()
    done = w.cilia("replacement", "off", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr


def test_while_it_hands_back_the_node_keeps_its_own_ports(made: Handover) -> None:
    """Those of clients' flows that are over; nothing of such a connection is left behind."""
    w = made.world
    w.start_agent("--devices=eth0")
    w.eventually(w.ready, 30)
    client = client_of_remote(made)
    assert w.cilia("replacement", "off").returncode == 0
    port = client.port
    client.close()
    w.eventually(lambda: made.status()["packets"] == 0)
    own = Stream(w.inside, (REMOTE, TARGET_PORT), port)
    assert made.status()["packets"] == 0
    w.agents[-1].terminate()
    w.agents[-1].wait()
    done = w.cilia("cleanup", f"--state-dir={w.state_dir}", f"--bpf-root={w.bpf_root}")
    assert done.returncode == 0, done.stderr
    assert own.ask() == "remote"


def client_of_remote(made: Handover) -> Stream:
    """A connection from outside that the remote server got."""
    while True:
        client = Stream(made.client, OUTSIDE)
        if client.server == "remote":
            return client
        client.close()

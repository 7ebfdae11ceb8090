# SPDX-License-Identifier: Apache-2.0
"""Connections to a backend itself and through services, all from one port of a client."""

from __future__ import annotations

import random
import socket

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from bpf.maps import ct
from bpf.maps.ct import CtFlag, Direction
from tests.bpf.datapath_world import Datapath
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    FAMILIES,
    GO_ON,
    Family,
    behind_key,
    connections,
    expect,
    flow_map,
    packet,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


class Client:
    """One port of a workload, which talks to two services and to the backend of both.

    The model: each open connection has a port of its own at the backend from its first packet to
    its last; packets arrive from that port, and answers to it come from the place that was asked.
    """

    def __init__(self, pod: Datapath, family: Family) -> None:
        self.pod, self.family = pod, family
        self.places = {"direct": (family.backend, 8080)}
        for number, service in enumerate((family.service, family.other_service), 1):
            pod.service(service, 80, socket.IPPROTO_TCP, [(family.backend, 8080)], rev_nat=number)
            self.places[service] = (service, 80)
        self.ports: dict[str, int] = {}

    def send(self, place: str, flags: str) -> None:
        sent = packet("tcp", self.family.pod, CLIENT_PORT, *self.places[place], flags=flags)
        result = self.pod.program("from_pod").run(bytes(sent))
        assert result.retval == GO_ON, (place, flags)
        port = Ether(result.data)[TCP].sport
        if place not in self.ports:
            assert port not in self.ports.values()
            self.ports[place] = port
        arrived = packet(
            "tcp", self.family.pod, self.ports[place], self.family.backend, 8080, flags=flags
        )
        expect(self.pod, "from_pod", sent, GO_ON, arrived)

    def answer(self, place: str, flags: str) -> None:
        answer = packet(
            "tcp", self.family.backend, 8080, self.family.pod, self.ports[place], flags=flags
        )
        seen = packet("tcp", *self.places[place], self.family.pod, CLIENT_PORT, flags=flags)
        expect(self.pod, "to_pod", answer, GO_ON, seen)

    def open(self, place: str) -> None:
        self.send(place, "S")
        self.answer(place, "SA")
        self.send(place, "A")

    def end(self, place: str, side: str) -> None:
        (self.answer if side == "backend" else self.send)(place, "RA")
        del self.ports[place]

    def talk(self, place: str) -> None:
        self.send(place, "PA")
        self.answer(place, "PA")


@FAMILIES
@pytest.mark.parametrize("seed", range(5))
def test_connections_of_one_port_do_not_meet(pod: Datapath, family: Family, seed: int) -> None:
    client, chance = Client(pod, family), random.Random(seed)
    for _ in range(60):
        place = chance.choice(list(client.places))
        if place not in client.ports:
            client.open(place)
        elif chance.random() < 0.3:
            client.end(place, chance.choice(["client", "backend"]))
        for open_place in client.ports:
            client.talk(open_place)


@FAMILIES
def test_direct_connection_keeps_the_port_that_it_got(pod: Datapath, family: Family) -> None:
    """Also when the connection that it avoided is over, and its entry forgotten."""
    client = Client(pod, family)
    client.open(family.service)
    client.open("direct")
    assert client.ports["direct"] != CLIENT_PORT
    client.end(family.service, "backend")
    client.talk("direct")
    pod.maps[flow_map(pod, family, "tcp")].delete(ct.encode_key(behind_key(family, "tcp")))
    client.talk("direct")
    client.end("direct", "client")
    client.open("direct")
    assert client.ports["direct"] == CLIENT_PORT


@FAMILIES
def test_direct_connection_is_tracked_to_its_end(pod: Datapath, family: Family) -> None:
    client = Client(pod, family)
    client.open("direct")
    client.send("direct", "FA")
    client.answer("direct", "FA")
    ((key, entry),) = connections(pod, family, "tcp").items()
    assert (key, key.direction) == (behind_key(family, "tcp"), Direction.EGRESS)
    assert entry.rev_nat == entry.backend_id == 0
    assert entry.flags == CtFlag.SEEN_REPLY | CtFlag.ORIGIN_CLOSING | CtFlag.REPLY_CLOSING

# SPDX-License-Identifier: Apache-2.0
"""Connections of a workload go on through a frontend that is deleted and made anew: it and its
backends have other numbers then, and the same addresses and ports.
"""

from __future__ import annotations

import msgspec
import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.libbpf import lib
from bpf.maps import ct
from tests.bpf.datapath_world import Datapath
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    EACH_PROTOCOL,
    FAMILIES,
    GO_ON,
    PROTOCOLS,
    REDIRECT,
    V4,
    Family,
    behind_key,
    connections,
    edit,
    expect,
    now_s,
    packet,
    refused,
    service_key,
)

pytestmark = pytest.mark.root

BACKEND_PORT = 8080
#: So many that a choice at random is another one.
BACKENDS = 12
CLIENTS = range(CLIENT_PORT, CLIENT_PORT + 8)


def backends(family: Family) -> list[str]:
    return [f"10.0.9.{n}" if family is V4 else f"fd00:9::{n}" for n in range(1, BACKENDS + 1)]


def serve(pod: Datapath, family: Family, proto: str, addresses: list[str], number: int) -> None:
    """Make the service, with this number and backend numbers that follow from it."""
    ports = [(address, BACKEND_PORT) for address in addresses]
    pod.service(family.service, 80, PROTOCOLS[proto], ports, rev_nat=number)


def serve_anew(
    pod: Datapath, family: Family, proto: str, addresses: list[str], number: int = 7
) -> None:
    """Delete the service and make it again; the order of backends is another one."""
    pod.delete_service(family.service, 80, PROTOCOLS[proto])
    serve(pod, family, proto, addresses[::-1], number)


def sent(family: Family, proto: str, port: int = CLIENT_PORT, flags: str = "A") -> Packet:
    return packet(proto, family.pod, port, family.service, 80, flags=flags)


def ends(pod: Datapath, request: Packet) -> tuple[str, int]:
    """The backend that a packet goes to, and the client's port there."""
    result = pod.program("from_pod").run(bytes(request))
    assert result.retval == GO_ON
    out = Ether(result.data)
    return str(out[1].dst), int(out[2].sport)


def open_all(pod: Datapath, family: Family, proto: str) -> dict[int, tuple[str, int]]:
    """Connections of several clients, whose answers were acknowledged."""
    found = {port: ends(pod, sent(family, proto, port, "S")) for port in CLIENTS}
    for port in CLIENTS:
        answer(pod, family, proto, found[port], port)
        assert ends(pod, sent(family, proto, port)) == found[port]
    return found


def answer(
    pod: Datapath, family: Family, proto: str, end: tuple[str, int], port: int = CLIENT_PORT
) -> None:
    """The backend's answer comes from the service, to the port that the client has."""
    backend, translated = end
    came = packet(proto, backend, BACKEND_PORT, family.pod, translated, flags="SA")
    seen = packet(proto, family.service, 80, family.pod, port, flags="SA")
    expect(pod, "to_pod", came, GO_ON, seen)


@FAMILIES
@EACH_PROTOCOL
def test_connections_go_on_when_their_service_is_made_anew(
    pod: Datapath, family: Family, proto: str
) -> None:
    serve(pod, family, proto, backends(family), 1)
    before = open_all(pod, family, proto)
    assert len(set(before.values())) > 1
    serve_anew(pod, family, proto, backends(family))
    for _ in range(2):
        after = {port: ends(pod, sent(family, proto, port)) for port in CLIENTS}
        assert after == before
    for port in CLIENTS:
        answer(pod, family, proto, before[port], port)
    found = connections(pod, family, proto)
    assert {entry.rev_nat for entry in found.values()} == {7}
    assert len(found) == 2 * len(CLIENTS)


@FAMILIES
@EACH_PROTOCOL
def test_backend_that_speaks_first_is_heard_when_its_service_is_back(
    pod: Datapath, family: Family, proto: str
) -> None:
    """A client that downloads has nothing to say before it hears more."""
    serve(pod, family, proto, backends(family), 1)
    end = open_all(pod, family, proto)[CLIENT_PORT]
    pod.delete_service(family.service, 80, PROTOCOLS[proto])
    came = packet(proto, end[0], BACKEND_PORT, family.pod, end[1], flags="SA")
    assert refused(pod, "to_pod", came) == lib.DROP_NO_SERVICE
    serve(pod, family, proto, backends(family), 7)
    answer(pod, family, proto, end)


@FAMILIES
@EACH_PROTOCOL
def test_connection_goes_on_when_only_its_backends_are_made_anew(
    pod: Datapath, family: Family, proto: str
) -> None:
    serve(pod, family, proto, backends(family), 1)
    before = open_all(pod, family, proto)
    pod.delete_service(family.service, 80, PROTOCOLS[proto])
    ports = [(address, BACKEND_PORT) for address in backends(family)]
    pod.service(family.service, 80, PROTOCOLS[proto], ports, rev_nat=1, first_id=500)
    assert {port: ends(pod, sent(family, proto, port)) for port in CLIENTS} == before


@FAMILIES
@EACH_PROTOCOL
def test_connection_does_not_keep_a_backend_that_is_not_behind_its_service_again(
    pod: Datapath, family: Family, proto: str
) -> None:
    """Not even if another service has it, under the number that the entry names."""
    serve(pod, family, proto, backends(family), 1)
    before = open_all(pod, family, proto)
    served = [(address, BACKEND_PORT) for address in backends(family)]
    pod.service(family.other_service, 80, PROTOCOLS[proto], served, rev_nat=2, first_id=101)
    pod.delete_service(family.service, 80, PROTOCOLS[proto], keep_backends=True)
    serve(pod, family, proto, [family.other_backend], 7)
    for port in before:
        assert ends(pod, sent(family, proto, port)) == (family.other_backend, port)


@FAMILIES
@EACH_PROTOCOL
def test_connection_goes_on_when_its_backends_are_back_later_than_its_service(
    pod: Datapath, family: Family, proto: str
) -> None:
    serve(pod, family, proto, backends(family), 1)
    before = open_all(pod, family, proto)
    serve_anew(pod, family, proto, [])
    result = pod.program("from_pod").run(bytes(sent(family, proto)))
    assert result.retval == REDIRECT, "the client is told by ICMP, which ends no connection"
    assert Ether(result.data).haslayer("ICMP") or Ether(result.data).haslayer("ICMPv6DestUnreach")
    serve(pod, family, proto, backends(family), 7)
    assert {port: ends(pod, sent(family, proto, port)) for port in CLIENTS} == before


@FAMILIES
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_port_behind_the_translation_is_kept(pod: Datapath, family: Family, proto: str) -> None:
    """The client's own is another frontend's at this backend."""
    served = [(family.backend, BACKEND_PORT)]
    pod.service(family.other_service, 80, PROTOCOLS[proto], served, rev_nat=2)
    other = packet(proto, family.pod, CLIENT_PORT, family.other_service, 80)
    assert ends(pod, other) == (family.backend, CLIENT_PORT)
    serve(pod, family, proto, [family.backend], 1)
    end = ends(pod, sent(family, proto, flags="S"))
    assert end[1] != CLIENT_PORT
    serve_anew(pod, family, proto, [family.other_backend, family.backend])
    assert ends(pod, sent(family, proto)) == end
    answer(pod, family, proto, end)
    assert ends(pod, other) == (family.backend, CLIENT_PORT)


@FAMILIES
@EACH_PROTOCOL
def test_workload_that_is_its_own_backend_goes_on_with_itself(
    pod: Datapath, family: Family, proto: str
) -> None:
    serve(pod, family, proto, [family.pod], 1)
    turned = packet(proto, family.loopback, CLIENT_PORT, family.pod, BACKEND_PORT, turned=True)
    expect(pod, "from_pod", sent(family, proto, flags="S"), REDIRECT, turned)
    serve_anew(pod, family, proto, [family.pod, *backends(family)])
    turned = packet(
        proto, family.loopback, CLIENT_PORT, family.pod, BACKEND_PORT, flags="A", turned=True
    )
    expect(pod, "from_pod", sent(family, proto), REDIRECT, turned)


@FAMILIES
@EACH_PROTOCOL
def test_entry_is_not_believed_for_another_frontend_with_its_number(
    pod: Datapath, family: Family, proto: str
) -> None:
    """An agent that starts gives numbers out again that were the highest."""
    serve(pod, family, proto, [family.backend], 1)
    end = ends(pod, sent(family, proto, flags="S"))
    pod.delete_service(family.service, 80, PROTOCOLS[proto])
    served = [(family.backend, BACKEND_PORT)]
    pod.service(family.other_service, 80, PROTOCOLS[proto], served, rev_nat=1)
    came = packet(proto, *(end[0], BACKEND_PORT, family.pod, end[1]), flags="SA")
    assert refused(pod, "to_pod", came) == lib.DROP_NO_SERVICE
    other = packet(proto, family.pod, CLIENT_PORT, family.other_service, 80)
    if proto == "sctp":
        assert refused(pod, "from_pod", other) == lib.DROP_CT_COLLISION
    else:
        assert ends(pod, other)[1] != CLIENT_PORT


@FAMILIES
def test_of_two_backends_that_a_port_had_the_last_one_is_the_connections(
    pod: Datapath, family: Family
) -> None:
    """The first one vanished without a word, and its entry stays for hours."""
    serve(pod, family, "tcp", [family.other_backend], 1)
    ends(pod, sent(family, "tcp", flags="S"))
    key = behind_key(family, "tcp", family.other_backend)
    edit(pod, family, "tcp", key, expires_s=now_s() + 30)
    edit(pod, family, "tcp", service_key(family, "tcp"), expires_s=now_s() - 5)
    serve(pod, family, "tcp", [family.backend], 1)
    assert ends(pod, sent(family, "tcp", flags="S"))[0] == family.backend
    serve_anew(pod, family, "tcp", [family.backend, family.other_backend])
    assert ends(pod, sent(family, "tcp"))[0] == family.backend


@FAMILIES
@EACH_PROTOCOL
def test_entry_of_an_earlier_version_learns_its_frontend(
    pod: Datapath, family: Family, proto: str
) -> None:
    """It has the number alone, which tells the frontend until that is made anew."""
    serve(pod, family, proto, backends(family), 1)
    end = ends(pod, sent(family, proto, flags="S"))
    key = behind_key(family, proto, end[0])
    edit(pod, family, proto, key, frontend_port=0, nat_address=bytes(16))
    answer(pod, family, proto, end)
    assert ends(pod, sent(family, proto)) == end
    serve_anew(pod, family, proto, backends(family))
    answer(pod, family, proto, end)
    assert ends(pod, sent(family, proto)) == end


@FAMILIES
@EACH_PROTOCOL
def test_entry_of_an_earlier_version_goes_on_with_no_packet_since_the_upgrade(
    pod: Datapath, family: Family, proto: str
) -> None:
    serve(pod, family, proto, backends(family), 1)
    before = open_all(pod, family, proto)
    for port, end in before.items():
        key = msgspec.structs.replace(behind_key(family, proto, end[0]), source_port=port)
        edit(pod, family, proto, key, frontend_port=0, nat_address=bytes(16))
    serve_anew(pod, family, proto, backends(family))
    for _ in range(2):
        assert {port: ends(pod, sent(family, proto, port)) for port in CLIENTS} == before
    for port, end in before.items():
        answer(pod, family, proto, end, port)


# -- while the frontend is gone --


@FAMILIES
def test_open_connection_is_not_left_to_the_stack_while_its_frontend_may_come_back(
    pod: Datapath, family: Family
) -> None:
    """The stack would reset it. A new connection is not held up, nor one whose time is over."""
    serve(pod, family, "tcp", [family.backend], 1)
    ends(pod, sent(family, "tcp", flags="S"))
    ends(pod, sent(family, "tcp"))
    pod.delete_service(family.service, 80, PROTOCOLS["tcp"])
    key = service_key(family, "tcp")
    for _ in range(2):
        result = pod.program("from_pod").run(bytes(sent(family, "tcp")))
        assert result.retval == REDIRECT, "the client is told by ICMP"
        assert 28 <= connections(pod, family, "tcp")[key].expires_s - now_s() <= 31
    edit(pod, family, "tcp", key, expires_s=now_s() - 5)
    expect(pod, "from_pod", sent(family, "tcp"), GO_ON, None)


@FAMILIES
def test_new_connection_from_the_port_of_one_whose_frontend_is_gone_passes(
    pod: Datapath, family: Family
) -> None:
    serve(pod, family, "tcp", [family.backend], 1)
    ends(pod, sent(family, "tcp", flags="S"))
    pod.delete_service(family.service, 80, PROTOCOLS["tcp"])
    for flags in ("S", "A", "PA"):
        expect(pod, "from_pod", sent(family, "tcp", flags=flags), GO_ON, None)


@FAMILIES
def test_connection_goes_on_after_packets_that_were_refused(pod: Datapath, family: Family) -> None:
    serve(pod, family, "tcp", backends(family), 1)
    before = open_all(pod, family, "tcp")
    pod.delete_service(family.service, 80, PROTOCOLS["tcp"])
    for port in CLIENTS:
        pod.program("from_pod").run(bytes(sent(family, "tcp", port)))
    serve(pod, family, "tcp", backends(family), 7)
    assert {port: ends(pod, sent(family, "tcp", port)) for port in CLIENTS} == before
    entry = connections(pod, family, "tcp")[service_key(family, "tcp")]
    assert entry.expires_s - now_s() > 7000, "it is an open connection as before"
    assert entry.flags & ct.CtFlag.NON_SYN == 0

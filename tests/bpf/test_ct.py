# SPDX-License-Identifier: Apache-2.0
"""The life of a connection to a service at a workload's device: how long it is remembered,
when it keeps its backend, and who may have its addresses and ports.
"""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.libbpf import ffi, lib
from bpf.maps import ct, lb
from bpf.maps.ct import CtFlag
from bpf.maps.lb import BackendValue, LBMaps, ServiceValue
from bpf.maps.lb_numbers import EntryState
from bpf.maps.map import Map
from bpf.maps.switch import Switch, SwitchState
from bpf.maps.types import MapType
from tests.bpf.datapath_world import Datapath, loaded, packed
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    EACH_PROTOCOL,
    FAMILIES,
    GO_ON,
    PROTOCOLS,
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
    web,
)

pytestmark = pytest.mark.root


# -- a connection's life --


def open_connection(datapath: Datapath, family: Family, proto: str = "tcp") -> None:
    web(datapath, family, proto)
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80)
    assert datapath.program("from_pod").run(bytes(sent)).retval == GO_ON


def send(datapath: Datapath, family: Family, flags: str) -> None:
    sent = packet("tcp", family.pod, CLIENT_PORT, family.service, 80, flags=flags)
    assert datapath.program("from_pod").run(bytes(sent)).retval == GO_ON


def receive(datapath: Datapath, family: Family, flags: str) -> None:
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags=flags)
    assert datapath.program("to_pod").run(bytes(answer)).retval == GO_ON


def lifetimes(datapath: Datapath, family: Family, proto: str = "tcp") -> tuple[int, int]:
    """Seconds that the entries stay, behind the translation and of the service."""
    found = connections(datapath, family, proto)
    keys = (behind_key(family, proto), service_key(family, proto))
    behind, service = (found[key].expires_s - now_s() for key in keys)
    return behind, service


def is_about(found: tuple[int, int], *wanted: int) -> bool:
    return all(-2 <= one - other <= 1 for one, other in zip(found, wanted, strict=True))


@FAMILIES
def test_timeouts_follow_the_state_of_tcp(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    assert is_about(lifetimes(pod, family), 60, 60)
    receive(pod, family, "SA")
    assert is_about(lifetimes(pod, family), 60, 60), "nobody has acknowledged the answer"
    send(pod, family, "A")
    assert is_about(lifetimes(pod, family), 8000, 8000)
    send(pod, family, "FA")
    assert is_about(lifetimes(pod, family), 8000, 60)
    receive(pod, family, "FA")
    assert is_about(lifetimes(pod, family), 10, 60)
    entry = connections(pod, family, "tcp")[behind_key(family, "tcp")]
    assert entry.flags == CtFlag.SEEN_REPLY | ct.CLOSING
    assert (entry.tcp_flags, entry.reply_tcp_flags) == (0x13, 0x13)


@FAMILIES
@pytest.mark.parametrize("side", [send, receive])
def test_reset_of_either_side_ends_it(pod: Datapath, family: Family, side: object) -> None:
    open_connection(pod, family)
    receive(pod, family, "SA")
    send(pod, family, "A")
    side(pod, family, "R")  # type: ignore[operator]
    behind, _ = lifetimes(pod, family)
    assert 8 <= behind <= 11


@FAMILIES
def test_entries_of_datagrams_last_a_minute_after_each(pod: Datapath, family: Family) -> None:
    open_connection(pod, family, "udp")
    for key in (behind_key(family, "udp"), service_key(family, "udp")):
        edit(pod, family, "udp", key, expires_s=now_s() + 3)
    open_connection(pod, family, "udp")
    assert is_about(lifetimes(pod, family, "udp"), 60, 60)


@FAMILIES
def test_packets_and_bytes_are_counted_on_request(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    for _ in range(3):
        send(pod, family, "A")
    receive(pod, family, "A")
    size = len(bytes(packet("tcp", family.pod, 1, family.service, 80)))
    entry = connections(pod, family, "tcp")[behind_key(family, "tcp")]
    assert (entry.packets, entry.bytes) == (3, 3 * size)
    assert (entry.reply_packets, entry.reply_bytes) == (1, size)


def move(datapath: Datapath, family: Family, proto: str = "tcp", *, keep_old: bool) -> None:
    """The service has another backend now, number 151; the old one may still have its row."""
    address = packed(family.service)
    maps = datapath.lb.of(address)
    value = BackendValue(packed(family.other_backend), 8080, PROTOCOLS[proto])
    maps.backend.update(lb.encode_id(151), lb.encode_backend(value))
    slot = lb.encode_service_key(address, 80, 1, PROTOCOLS[proto])
    maps.service.update(slot, lb.encode_service(ServiceValue(backend_id=151)))
    if not keep_old:
        maps.backend.delete(lb.encode_id(101))


def destination(datapath: Datapath, family: Family, proto: str = "tcp", flags: str = "A") -> str:
    """Where the client's next packet goes."""
    sent = packet(proto, family.pod, CLIENT_PORT, family.service, 80, flags=flags)
    result = datapath.program("from_pod").run(bytes(sent))
    assert result.retval == GO_ON
    return str(Ether(result.data)[1].dst)


@FAMILIES
@EACH_PROTOCOL
def test_connection_keeps_its_backend_when_others_take_over(
    pod: Datapath, family: Family, proto: str
) -> None:
    open_connection(pod, family, proto)
    move(pod, family, proto, keep_old=True)
    assert destination(pod, family, proto) == family.backend
    other = packet(proto, family.pod, CLIENT_PORT + 1, family.service, 80)
    result = pod.program("from_pod").run(bytes(other))
    assert Ether(result.data)[1].dst == family.other_backend


@FAMILIES
@EACH_PROTOCOL
def test_backend_that_is_gone_is_left_at_once(pod: Datapath, family: Family, proto: str) -> None:
    open_connection(pod, family, proto)
    move(pod, family, proto, keep_old=False)
    assert destination(pod, family, proto) == family.other_backend


@FAMILIES
@pytest.mark.parametrize("state", [EntryState.TERMINATING, EntryState.QUARANTINED])
def test_only_a_new_connection_leaves_a_backend_on_its_way_out(
    pod: Datapath, family: Family, state: EntryState
) -> None:
    open_connection(pod, family)
    move(pod, family, keep_old=True)
    value = BackendValue(packed(family.backend), 8080, socket.IPPROTO_TCP, state)
    maps = pod.lb.of(packed(family.service))
    maps.backend.update(lb.encode_id(101), lb.encode_backend(value))
    assert destination(pod, family, flags="A") == family.backend
    assert destination(pod, family, flags="S") == family.other_backend


@FAMILIES
@pytest.mark.parametrize("side", [send, receive])
def test_port_that_is_used_again_gets_a_new_backend(
    pod: Datapath, family: Family, side: object
) -> None:
    open_connection(pod, family)
    receive(pod, family, "SA")
    send(pod, family, "A")
    move(pod, family, keep_old=True)
    assert destination(pod, family, flags="S") == family.backend
    side(pod, family, "FA")  # type: ignore[operator]
    assert destination(pod, family, flags="A") == family.backend
    assert destination(pod, family, flags="S") == family.other_backend


@FAMILIES
def test_expired_flow_of_datagrams_chooses_anew(pod: Datapath, family: Family) -> None:
    open_connection(pod, family, "udp")
    move(pod, family, "udp", keep_old=True)
    edit(pod, family, "udp", service_key(family, "udp"), expires_s=now_s() - 5)
    assert destination(pod, family, "udp") == family.other_backend


@FAMILIES
def test_silent_tcp_connection_is_still_known(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    move(pod, family, keep_old=True)
    edit(pod, family, "tcp", service_key(family, "tcp"), expires_s=now_s() - 5)
    assert destination(pod, family, flags="A") == family.backend


@FAMILIES
def test_entry_of_another_frontend_at_the_same_address_is_not_used(
    pod: Datapath, family: Family
) -> None:
    open_connection(pod, family)
    pod.service(family.service, 80, socket.IPPROTO_TCP, [(family.other_backend, 8080)], rev_nat=9)
    assert destination(pod, family) == family.other_backend


# -- one tuple, two claims --


def other_web(datapath: Datapath, family: Family, backends: list[str]) -> Packet:
    """Another frontend; the packet that the same client port sends to it."""
    ports = [(backend, 8080) for backend in backends]
    datapath.service(family.other_service, 80, socket.IPPROTO_TCP, ports, rev_nat=2)
    return packet("tcp", family.pod, CLIENT_PORT, family.other_service, 80)


def translated_port(datapath: Datapath, sent: Packet) -> int:
    """The source port with which a packet goes to its backend."""
    result = datapath.program("from_pod").run(bytes(sent))
    assert result.retval == GO_ON
    return int(Ether(result.data)[2].sport)


@FAMILIES
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_second_frontend_with_one_backend_gets_another_port(
    pod: Datapath, family: Family, proto: str
) -> None:
    """Both go on, and each answer comes from the frontend that was asked."""
    open_connection(pod, family, proto)
    number = socket.IPPROTO_TCP if proto == "tcp" else socket.IPPROTO_UDP
    pod.service(family.other_service, 80, number, [(family.backend, 8080)], rev_nat=2)
    sent = {
        service: packet(proto, family.pod, CLIENT_PORT, service, 80)
        for service in (family.service, family.other_service)
    }
    port = translated_port(pod, sent[family.other_service])
    ports = {family.service: CLIENT_PORT, family.other_service: port}
    assert port != CLIENT_PORT
    for service in (family.service, family.other_service) * 2:
        behind = packet(proto, family.pod, ports[service], family.backend, 8080)
        expect(pod, "from_pod", sent[service], GO_ON, behind)
        answer = packet(proto, family.backend, 8080, family.pod, ports[service], flags="SA")
        seen = packet(proto, service, 80, family.pod, CLIENT_PORT, flags="SA")
        expect(pod, "to_pod", answer, GO_ON, seen)


@FAMILIES
def test_connection_with_another_port_keeps_it_to_its_end(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    sent = other_web(pod, family, [family.backend])
    port = translated_port(pod, sent)
    receive(pod, family, "RA")
    assert translated_port(pod, sent) == port, "the first connection is over"
    reset = packet("tcp", family.backend, 8080, family.pod, port, flags="RA")
    seen = packet("tcp", family.other_service, 80, family.pod, CLIENT_PORT, flags="RA")
    expect(pod, "to_pod", reset, GO_ON, seen)
    assert translated_port(pod, sent) == CLIENT_PORT, "it is over, and its own port is free"


@FAMILIES
def test_second_frontend_gets_another_backend(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    free = [f"10.0.9.{n}" if family is V4 else f"fd00:9::{n}" for n in range(1, 16)]
    sent = other_web(pod, family, [family.backend, *free])
    results = [pod.program("from_pod").run(bytes(sent)) for _ in range(5)]
    chosen = {str(Ether(result.data)[1].dst) for result in results}
    assert len(chosen) == 1
    assert chosen < set(free)


@FAMILIES
def test_tuple_of_a_closed_connection_is_free(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    receive(pod, family, "RA")
    sent = other_web(pod, family, [family.backend])
    expected = packet("tcp", family.pod, CLIENT_PORT, family.backend, 8080)
    expect(pod, "from_pod", sent, GO_ON, expected)


@FAMILIES
def test_direct_datagrams_get_answers_of_their_own(pod: Datapath, family: Family) -> None:
    open_connection(pod, family, "udp")
    direct = packet("udp", family.pod, CLIENT_PORT, family.backend, 8080)
    expect(pod, "from_pod", direct, GO_ON, None)
    answer = packet("udp", family.backend, 8080, family.pod, CLIENT_PORT)
    expect(pod, "to_pod", answer, GO_ON, None)


@FAMILIES
def test_direct_packet_of_an_unknown_connection_is_refused_while_its_answers_would_be_a_services(
    pod: Datapath, family: Family
) -> None:
    open_connection(pod, family)
    direct = packet("tcp", family.pod, CLIENT_PORT, family.backend, 8080, flags="PA")
    assert refused(pod, "from_pod", direct) == lib.DROP_CT_COLLISION
    receive(pod, family, "RA")
    edit(pod, family, "tcp", behind_key(family, "tcp"), expires_s=now_s() - 5)
    opening = packet("tcp", family.pod, CLIENT_PORT, family.backend, 8080)
    expect(pod, "from_pod", opening, GO_ON, None)
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="SA")
    expect(pod, "to_pod", answer, GO_ON, None)


@FAMILIES
def test_connection_of_the_backends_own_passes(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    opening = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="S")
    expect(pod, "to_pod", opening, GO_ON, None)
    receive(pod, family, "R")
    expect(pod, "to_pod", opening, GO_ON, None)
    assert behind_key(family, "tcp") not in connections(pod, family, "tcp")


@FAMILIES
def test_answer_of_a_deleted_service_is_refused(pod: Datapath, family: Family) -> None:
    open_connection(pod, family)
    pod.delete_service(family.service, 80, socket.IPPROTO_TCP)
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="SA")
    assert refused(pod, "to_pod", answer) == lib.DROP_NO_SERVICE


@FAMILIES
def test_answer_of_what_entered_by_a_device_is_left_to_the_device(
    pod: Datapath, family: Family
) -> None:
    open_connection(pod, family)
    edit(pod, family, "tcp", behind_key(family, "tcp"), flags=int(CtFlag.NODE_PORT))
    answer = packet("tcp", family.backend, 8080, family.pod, CLIENT_PORT, flags="SA")
    expect(pod, "to_pod", answer, GO_ON, None)


def test_connection_that_cannot_be_remembered_is_refused() -> None:
    """The real maps evict what is old; a plain hash of one entry is full."""
    sizes = ffi.sizeof("struct ct4_key"), ffi.sizeof("struct ct_entry")
    full = Map.create(MapType.HASH, "cilia_ct4_tcp", *sizes, 1)
    with full, closing(LBMaps.create(16, 16)) as lb_maps:
        shared = Datapath(lb_maps, {"cilia_ct4_tcp": full}, [])
        with loaded(["lxc"], shared=shared) as pod:
            web(pod, V4)
            sent = packet("tcp", V4.pod, CLIENT_PORT, V4.service, 80)
            assert refused(pod, "from_pod", sent) == lib.DROP_CT_CREATE_FAILED


@FAMILIES
def test_connection_of_ours_is_not_left_to_another_proxy(pod: Datapath, family: Family) -> None:
    """Its frontend was made anew, under another number."""
    open_connection(pod, family)
    pod.service(family.service, 80, socket.IPPROTO_TCP, [(family.backend, 8080)], rev_nat=2)
    switch = Switch(pod.maps["cilia_switch"])
    switch.state = SwitchState.TAKE_OVER
    try:
        assert destination(pod, family) == family.backend
        other = packet("tcp", family.pod, CLIENT_PORT + 1, family.service, 80, flags="A")
        expect(pod, "from_pod", other, GO_ON, None)
    finally:
        switch.state = SwitchState.SERVE

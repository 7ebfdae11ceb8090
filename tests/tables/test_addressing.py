# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import doctest
import ipaddress
from socket import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables import addressing
from tables.addressing import (
    AT_IP,
    AT_IPV4,
    AT_PORT,
    AT_PROTOCOL,
    AT_SCOPE,
    AT_TAIL,
    IP,
    SCOPE_INTERNAL,
    TAILS,
    L3n4Addr,
    ServiceName,
    mapped_ip,
    parse_address_key,
    special_use,
)

ips = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
addresses = st.builds(
    lambda ip, port, protocol, scope: L3n4Addr.of(str(ip), port, protocol, scope),
    ips,
    st.integers(0, 65535),
    st.sampled_from(["TCP", "UDP", "SCTP", "ANY"]),
    st.integers(0, 1),
)


def test_doctests() -> None:
    assert doctest.testmod(addressing).failed == 0
    assert doctest.testmod(addressing).attempted > 10


@given(addresses)
def test_text_of_an_address_is_read_back_as_the_same_address(addr: L3n4Addr) -> None:
    assert L3n4Addr.parse(str(addr)) == addr


@given(addresses)
def test_parts_in_network_order_are_those_that_the_text_has(addr: L3n4Addr) -> None:
    port = addr.port.to_bytes(2, "big")
    assert addr.packed_place == addr.ip.packed + port
    assert (addr[AT_PORT], addr[AT_PROTOCOL], addr[AT_SCOPE]) == (
        port,
        ord("?" if addr.protocol == "ANY" else addr.protocol[0]),
        addr.scope,
    )
    assert mapped_ip(addr[AT_IP] if addr.is_ipv6 else addr[AT_IPV4]) == addr.ip
    numbers = {"TCP": IPPROTO_TCP, "UDP": IPPROTO_UDP, "SCTP": IPPROTO_SCTP, "ANY": 0}
    assert TAILS[addr[AT_TAIL]] == (numbers[addr.protocol], addr.scope)


@given(ips)
def test_ip_text_is_canonical(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    assert str(IP.parse(str(ip))) == str(mapped or ip)


@pytest.mark.parametrize("text", ["::102:304", "::1", "::", "64:ff9b::102:304"])
def test_v4_compatible_addresses_are_printed_as_v6(text: str) -> None:
    assert str(IP.parse(text)) == text


@given(st.ip_addresses())
def test_special_use_is_what_the_library_says(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Hypothesis draws from the special networks often."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    ip = mapped or ip
    special = (
        ip.is_loopback
        or ip.is_multicast
        or ip.is_link_local
        or ip.is_unspecified
        or str(ip) == "255.255.255.255"
    )
    assert bool(special_use(ip.packed)) == special
    assert special_use(IP.parse(str(ip))) == special_use(ip.packed)


def test_order_is_by_family_then_address_then_port_then_protocol_then_scope() -> None:
    ordered = [
        "[::]:30000/TCP",
        "0.0.0.0:30000/TCP",
        "9.0.0.1:80/TCP",
        "10.0.0.1:80/SCTP",
        "10.0.0.1:80/TCP",
        "10.0.0.1:80/TCP/i",
        "10.0.0.1:80/UDP",
        "10.0.0.1:443/TCP",
        "[2001::1]:80/TCP",
    ]
    assert [str(addr) for addr in sorted(map(L3n4Addr.parse, reversed(ordered)))] == ordered


def test_fields_stand_at_their_bytes() -> None:
    addr = L3n4Addr.of("10.0.0.1", 0x1234, "UDP", SCOPE_INTERNAL, cluster_id=7)
    assert bytes(addr) == (
        bytes(10) + b"\xff\xff\x0a\x00\x00\x01" + b"\x00\x00\x00\x07" + b"\x12\x34" + b"U" + b"\x01"
    )
    assert (addr.cluster_id, addr.port, addr.protocol, addr.scope) == (7, 0x1234, "UDP", 1)
    assert str(addr) == "10.0.0.1@7:4660/UDP/i"


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1:80/TCP/x",
        "10.0.0.1:80/ICMP",
        "10.0.0.1:65536/TCP",
        "10.0.0.256:80/TCP",
        "10.0.0.1/TCP",
        "[::1:80/TCP",
        "10.0.0.1:-1/TCP",
        "01.2.3.4:80/TCP",
        "",
    ],
)
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address_key(text)


def test_partial_text_is_refused_as_an_address_and_is_a_prefix_as_a_key() -> None:
    with pytest.raises(ValueError, match="ADDRESS:PORT/PROTOCOL"):
        L3n4Addr.parse("10.0.0.1:80")
    whole = L3n4Addr.parse("10.0.0.1:80/TCP")
    assert whole.startswith(parse_address_key("10.0.0.1"))
    assert whole.startswith(parse_address_key("10.0.0.1:80"))
    assert L3n4Addr.parse("[2001::1]:80/TCP").startswith(parse_address_key("2001::1"))


@pytest.mark.parametrize(("protocol", "scope"), [("ICMP", 0), ("TCP", 2)])
def test_unknown_protocol_or_scope_is_refused(protocol: str, scope: int) -> None:
    with pytest.raises(ValueError):
        L3n4Addr.of("10.0.0.1", 80, protocol, scope)


def test_properties_of_addresses() -> None:
    assert L3n4Addr.parse("[::]:1/TCP").is_surrogate
    assert not L3n4Addr.parse("[::1]:1/TCP").is_surrogate
    assert L3n4Addr.parse("[::1]:1/TCP").is_ipv6
    assert IP.parse("127.0.0.2").is_loopback
    assert IP.parse("::1").is_loopback
    assert not IP.parse("10.0.0.1").is_loopback
    assert IP.parse("10.0.0.1").packed == b"\x0a\x00\x00\x01"
    moved = L3n4Addr.parse("0.0.0.0:30000/TCP").with_ip(IP.parse("10.0.0.9"))
    assert str(moved.with_scope(SCOPE_INTERNAL)) == "10.0.0.9:30000/TCP/i"


@pytest.mark.parametrize("text", ["echo", "a/b/c/d", "/echo", "test/"])
def test_malformed_service_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ServiceName.parse(text)


def test_service_name_with_cluster() -> None:
    name = ServiceName.of("test", "echo", "east")
    assert (name, name.cluster, name.namespace, name.name) == (
        "east/test/echo",
        "east",
        "test",
        "echo",
    )

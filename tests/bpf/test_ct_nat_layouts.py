# SPDX-License-Identifier: Apache-2.0
"""The codecs of connection tracking and translation write what the C structs say."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import pytest

from bpf.libbpf import ffi, lib
from bpf.maps import ct, nat
from bpf.maps.fake import FakeMap

V4 = (bytes([10, 1, 2, 3]), bytes([192, 168, 0, 9]))
V6 = (bytes.fromhex("fd00010203040506070809a0b0c0d0e0"), bytes.fromhex("fd01" + "00" * 13 + "07"))
FAMILIES = pytest.mark.parametrize(("number", "addresses"), [(4, V4), (6, V6)])


def view(struct: str, raw: bytes) -> Any:
    assert len(raw) == ffi.sizeof(f"struct {struct}")
    return ffi.from_buffer(f"struct {struct} *", raw)


def field_bytes(pointer: Any, name: str) -> bytes:
    return bytes(ffi.buffer(ffi.addressof(pointer[0], name)))


@FAMILIES
@pytest.mark.parametrize("struct", ["ct", "nat"])
def test_keys_are_the_c_structs(struct: str, number: int, addresses: tuple[bytes, bytes]) -> None:
    key = ct.CtKey(*addresses, destination_port=8080, source_port=40001, proto=17, direction=1)
    raw = ct.encode_key(key)
    c = view(f"{struct}{number}_key", raw)
    assert field_bytes(c, "daddr") == addresses[0]
    assert field_bytes(c, "saddr") == addresses[1]
    assert (socket.ntohs(c.dport), socket.ntohs(c.sport)) == (8080, 40001)
    assert (c.proto, c.direction, c.pad) == (17, 1, 0)
    assert ct.decode_key(raw) == key


def test_connections_are_the_c_struct() -> None:
    numbers = ct.CtEntry.__struct_fields__[:-1]
    values = {name: number + 1 for number, name in enumerate(numbers)}
    entry = ct.CtEntry(**values, nat_address=V6[0])
    raw = ct.encode_entry(entry)
    c = view("ct_entry", raw)
    found = {name: getattr(c, name) for name in values}
    in_order = {name: socket.ntohs(found[name]) for name in ("frontend_port", "nat_port")}
    assert found | in_order == values
    assert field_bytes(c, "nat_address") == V6[0]
    assert ct.decode_entry(raw) == entry
    assert ffi.offsetof("struct ct_entry", "expires_s") == ct.EXPIRES.start


@FAMILIES
def test_translations_are_the_c_structs(number: int, addresses: tuple[bytes, bytes]) -> None:
    names = [name for name in nat.NatValue.__struct_fields__ if name not in ("address", "frontend")]
    values = {name: at for at, name in enumerate(names, start=1)}
    value = nat.NatValue(address=addresses[0], frontend=addresses[1], **values)
    raw = nat.encode_value(value)
    c = view(f"nat{number}_value", raw)
    assert field_bytes(c, "address") == addresses[0]
    assert field_bytes(c, "frontend") == addresses[1]
    for name, expected in values.items():
        found = getattr(c, name)
        assert (socket.ntohs(found) if name.endswith("port") else found) == expected, name
    assert nat.decode_value(raw) == value
    assert ffi.offsetof(f"struct nat{number}_value", "expires_s") == nat.EXPIRES[len(raw)].start


@FAMILIES
def test_entries_of_a_flow_name_each_other(number: int, addresses: tuple[bytes, bytes]) -> None:
    backend, client = addresses
    node = backend[:-1] + b"\x01"
    out = nat.NatKey(backend, client, 80, 1234, 6, nat.NatDirection.OUT)
    back = nat.partner(out, nat.NatValue(node, 50000))
    assert back == nat.NatKey(node, backend, 50000, 80, 6, nat.NatDirection.IN)
    assert nat.partner(back, nat.NatValue(client, 1234)) == out


def test_numbers_are_those_of_c() -> None:
    ours = {
        **{f"CT_{name}": value for name, value in ct.Direction.__members__.items()},
        **{f"CT_{n}": v for n, v in ct.CtFlag.__members__.items() if n != "NONE"},
        **{f"NAT_{name}": value for name, value in nat.NatDirection.__members__.items()},
        **{f"NAT_{n}": v for n, v in nat.NatFlag.__members__.items() if n != "NONE"},
    }
    theirs = {name: getattr(lib, name) for name in dir(lib) if name.startswith(("CT_", "NAT_"))}
    assert ours == theirs


def test_all_entries_of_a_map_are_decoded() -> None:
    key = ct.CtKey(*V4, 80, 1234, 6, ct.Direction.SERVICE)
    entry = ct.CtEntry(backend_id=3, rev_nat=9)
    raw = FakeMap("cilia_ct4_tcp", 16, ct.ENTRY_SIZE, 16)
    raw.update(ct.encode_key(key), ct.encode_entry(entry))
    assert list(ct.connections(raw)) == [(key, entry)]
    assert str(key) == "192.168.0.9:1234 -> 10.1.2.3:80"
    assert msgspec.structs.replace(entry, rev_nat=0) != entry


@FAMILIES
def test_pressure_is_the_c_struct(number: int, addresses: tuple[bytes, bytes]) -> None:
    c = ffi.new("struct nat_pressure *")
    ffi.memmove(c.address, addresses[0], len(addresses[0]))
    c.port, c.proto, c.family, c.refused = socket.htons(8080), 17, number, 1
    raw = bytes(ffi.buffer(c))
    assert nat.decode_pressure(raw) == nat.Pressure(addresses[0], 8080, 17, True)

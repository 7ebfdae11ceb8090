# SPDX-License-Identifier: Apache-2.0
"""The codecs write what the C structs of ``bpf/lib/lb_types.h`` say, byte for byte."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from bpf.libbpf import ffi, lib
from bpf.maps import lb
from bpf.maps.fake import TABLE_PART_BYTES
from bpf.maps.lb_numbers import (
    Algorithm,
    EntryState,
    FrontendType,
    Scope,
    ServiceFlag,
    SourceMeaning,
)
from bpf.maps.tables import PART_BYTES

V4 = bytes([10, 1, 2, 3])
V6 = bytes.fromhex("fd00010203040506070809a0b0c0d0e0")


def fields_of(struct: str, raw: bytes) -> dict[str, Any]:
    """A struct's fields as C sees them; addresses as bytes, network-order ports as numbers."""
    assert len(raw) == ffi.sizeof(f"struct {struct}")
    view = ffi.from_buffer(f"struct {struct} *", raw)
    found: dict[str, Any] = {}
    for name, _ in ffi.typeof(f"struct {struct}").fields:
        value = getattr(view, name)
        if name == "address":
            value = bytes(ffi.buffer(ffi.addressof(view[0], "address")))
        elif name in ("port", "dport", "l7_port"):
            value = socket.ntohs(value)
        found[name] = value
    return found


@pytest.mark.parametrize(("struct", "address"), [("lb4_key", V4), ("lb6_key", V6)])
def test_service_key_is_the_c_struct(struct: str, address: bytes) -> None:
    raw = lb.encode_service_key(address, 0x1F90, slot=0x0203, proto=6, scope=1)
    assert fields_of(struct, raw) == {
        "address": address,
        "dport": 0x1F90,
        "slot": 0x0203,
        "proto": 6,
        "scope": 1,
        "pad": 0,
    }


def test_service_value_is_the_c_struct() -> None:
    value = lb.ServiceValue(0x01020304, 0x05060708, 10800, 0x1234, 7, 9, 8443, 100, 3, 2, 0x0A0B)
    assert fields_of("lb_service", lb.encode_service(value)) == {
        "backend_id": 0x01020304,
        "rev_nat": 0x05060708,
        "affinity_timeout_s": 10800,
        "flags": 0x1234,
        "count": 7,
        "qcount": 9,
        "l7_port": 8443,
        "weight": 100,
        "type": 3,
        "algorithm": 2,
        "owner": 0x0A0B,
    }


@pytest.mark.parametrize(("struct", "address"), [("lb4_backend", V4), ("lb6_backend", V6)])
def test_backend_is_the_c_struct(struct: str, address: bytes) -> None:
    raw = lb.encode_backend(lb.BackendValue(address, 8080, 17, 2, 0x01020304, 5, 6))
    assert fields_of(struct, raw) == {
        "address": address,
        "port": 8080,
        "proto": 17,
        "state": 2,
        "cluster_id": 0x01020304,
        "zone": 5,
        "flags": 6,
        "pad": 0,
    }


@pytest.mark.parametrize(("struct", "address"), [("lb4_rev", V4), ("lb6_rev", V6)])
def test_rev_nat_is_the_c_struct(struct: str, address: bytes) -> None:
    raw = lb.encode_rev_nat(lb.RevNatValue(address, 443))
    assert fields_of(struct, raw) == {"address": address, "port": 443, "pad": 0}


@pytest.mark.parametrize(("number", "address"), [(4, V4), (6, V6)])
def test_socket_entries_are_the_c_structs(number: int, address: bytes) -> None:
    raw = lb.encode_socket_key(lb.SocketKey(0x0102030405060708, address, 53))
    found = fields_of(f"sock{number}_key", raw)
    assert (found["cookie"], found["address"], found["port"]) == (0x0102030405060708, address, 53)
    view = ffi.new(f"struct sock{number}_value *")
    ffi.buffer(ffi.addressof(view[0], "address"))[:] = address
    view.port, view.rev_nat = socket.htons(53), 99
    assert lb.decode_socket(bytes(ffi.buffer(view))) == lb.SocketValue(address, 53, 99)


@pytest.mark.parametrize(("number", "address"), [(4, V4), (6, V6)])
def test_affinity_and_source_entries_are_the_c_structs(number: int, address: bytes) -> None:
    family = lb.family_of(address)
    raw = lb.encode_affinity_key(lb.AffinityKey(address, 7, True), family)
    view = ffi.from_buffer(f"struct lb{number}_affinity_key *", raw)
    client = bytes(ffi.buffer(ffi.addressof(view[0], "client")))
    assert (client[: len(address)], view.rev_nat, view.is_netns) == (address, 7, 1)
    value = fields_of("lb_affinity", lb.encode_affinity(lb.Affinity(1 << 40, 9)))
    assert value == {"last_used_ns": 1 << 40, "backend_id": 9, "pad": 0}
    match = lb.encode_affinity_match(lb.AffinityMatch(9, 7))
    assert fields_of("lb_affinity_match_key", match) == {"backend_id": 9, "rev_nat": 7}
    source = lb.encode_source_range(lb.SourceRange(7, address, 24))
    assert fields_of(f"lb{number}_source_key", source) == {
        "prefix_bits": 56,
        "rev_nat": 7,
        "address": address,
    }


@pytest.mark.parametrize("family", [lb.IPV4, lb.IPV6])
def test_every_size_is_that_of_c(family: lb.Family) -> None:
    number = 4 if family is lb.IPV4 else 6
    sizes = {
        f"lb{number}_key": family.service_key.size,
        f"lb{number}_backend": family.backend_value.size,
        f"lb{number}_rev": family.rev_nat_value.size,
        f"sock{number}_key": family.socket_key.size,
        f"sock{number}_value": family.socket_value.size,
        f"lb{number}_affinity_key": family.affinity_key.size,
        f"lb{number}_source_key": family.source_key.size,
        "lb_affinity": lb.AFFINITY_VALUE.size,
        "lb_affinity_match_key": lb.AFFINITY_MATCH.size,
        "lb_present": len(lb.PRESENT),
        "lb_source": len(lb.encode_source_meaning(True)),
        "lb_maglev_part": PART_BYTES,
        "lb_service": lb.SERVICE_VALUE.size,
        "lb_backend_key": lb.ID.size,
        "lb_rev_key": lb.ID.size,
    }
    assert sizes == {name: ffi.sizeof(f"struct {name}") for name in sizes}
    assert TABLE_PART_BYTES == PART_BYTES
    rev_nat = ffi.offsetof(f"struct lb{number}_source_key", "rev_nat")
    key = bytes(range(ffi.sizeof(f"struct lb{number}_source_key")))
    assert lb.match_rev_nat(key) == key[rev_nat : rev_nat + 4]
    assert family.slot.start == family.address_bytes + 2  # behind address and port


def test_enumerations_are_those_of_c() -> None:
    ours = {
        **{f"LB_TYPE_{kind.name}": kind.number for kind in FrontendType},
        **{f"LB_ALG_{name}": value for name, value in Algorithm.__members__.items()},
        **{f"LB_SCOPE_{name}": value for name, value in Scope.__members__.items()},
        **{f"LB_SOURCE_{name}": value for name, value in SourceMeaning.__members__.items()},
        **{f"LB_BE_{name}": value for name, value in EntryState.__members__.items()},
        **{
            f"LB_SVC_{name.removeprefix('TRANSLATE_')}": value
            for name, value in ServiceFlag.__members__.items()
            if name != "NONE"
        },
    }
    theirs = {name: getattr(lib, name) for name in dir(lib) if name.startswith("LB_")}
    assert ours == theirs

# SPDX-License-Identifier: Apache-2.0
"""A workload behind a local redirection, and its own packets to what is redirected."""

from __future__ import annotations

import socket

import pytest
from scapy.packet import Packet

from bpf.libbpf import ffi
from bpf.maps import redirect_skips
from bpf.maps.lb_numbers import FrontendType
from tests.bpf.datapath_world import Datapath, packed
from tests.bpf.lxc_world import (
    CLIENT_PORT,
    EACH_PROTOCOL,
    FAMILIES,
    GO_ON,
    V4,
    Family,
    connections,
    expect,
    packet,
    web,
)

pytestmark = pytest.mark.root


def redirected(datapath: Datapath, family: Family, proto: str, kind: FrontendType) -> None:
    web(datapath, family, proto, kind=kind.number)


def spare(datapath: Datapath, family: Family, pod: str, port: int = 80) -> None:
    key = redirect_skips.PodSkipKey(packed(pod), packed(family.service), port)
    raw = datapath.maps[f"cilia_skip_pod{4 if family is V4 else 6}"]
    raw.update(redirect_skips.encode_key(key), redirect_skips.VALUE)


def asked(family: Family, proto: str, flags: str = "S") -> Packet:
    return packet(proto, family.pod, CLIENT_PORT, family.service, 80, flags=flags)


def served(family: Family, proto: str, flags: str = "S") -> Packet:
    return packet(proto, family.pod, CLIENT_PORT, family.backend, 8080, flags=flags)


@EACH_PROTOCOL
@FAMILIES
def test_packets_of_a_spared_workload_pass_untouched(
    pod: Datapath, family: Family, proto: str
) -> None:
    redirected(pod, family, proto, FrontendType.LOCAL_REDIRECT)
    spare(pod, family, family.pod)
    expect(pod, "from_pod", asked(family, proto), GO_ON, None)
    assert all(not entry.rev_nat for entry in connections(pod, family, proto).values())


@pytest.mark.parametrize(
    ("kind", "spared", "port"),
    [
        (FrontendType.LOCAL_REDIRECT, "other", 80),
        (FrontendType.LOCAL_REDIRECT, "pod", 81),
        (FrontendType.CLUSTER_IP, "pod", 80),
    ],
    ids=["another-workload", "another-port", "no-redirection"],
)
@FAMILIES
def test_others_are_redirected(
    pod: Datapath, family: Family, kind: FrontendType, spared: str, port: int
) -> None:
    redirected(pod, family, "tcp", kind)
    spare(pod, family, family.pod if spared == "pod" else family.other_backend, port)
    expect(pod, "from_pod", asked(family, "tcp"), GO_ON, served(family, "tcp"))


@FAMILIES
def test_connection_that_was_redirected_goes_on(pod: Datapath, family: Family) -> None:
    redirected(pod, family, "tcp", FrontendType.LOCAL_REDIRECT)
    expect(pod, "from_pod", asked(family, "tcp"), GO_ON, served(family, "tcp"))
    spare(pod, family, family.pod)
    expect(pod, "from_pod", asked(family, "tcp", "A"), GO_ON, served(family, "tcp", "A"))


@pytest.mark.parametrize(
    ("struct", "pod_address", "address"),
    [
        ("skip_pod4_key", bytes([10, 0, 1, 7]), bytes([10, 1, 2, 3])),
        ("skip_pod6_key", bytes(range(16)), bytes(range(16, 32))),
    ],
)
def test_codec_writes_the_c_struct(struct: str, pod_address: bytes, address: bytes) -> None:
    key = redirect_skips.PodSkipKey(pod_address, address, 0x1F90)
    raw = redirect_skips.encode_key(key)
    assert len(raw) == ffi.sizeof(f"struct {struct}")
    view = ffi.from_buffer(f"struct {struct} *", raw)
    assert bytes(ffi.buffer(ffi.addressof(view[0], "pod"))) == pod_address
    assert bytes(ffi.buffer(ffi.addressof(view[0], "address"))) == address
    assert socket.ntohs(view.port) == 0x1F90
    assert redirect_skips.decode_key(raw) == key

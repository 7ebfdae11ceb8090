# SPDX-License-Identifier: Apache-2.0
"""The load-balancer maps as text."""

from __future__ import annotations

from bpf.maps.lb import (
    BackendValue,
    LBMaps,
    RevNatValue,
    ServiceValue,
    encode_backend,
    encode_id,
    encode_rev_nat,
    encode_service,
    encode_service_key,
)
from bpf.maps.lb_dump import dump, flags_text
from bpf.maps.lb_numbers import Algorithm, EntryState, FrontendType, ServiceFlag

V4, V6 = b"\x0a\x60\x00\x01", bytes.fromhex("20010000000000000000000000000001")


def put(maps: LBMaps, address: bytes, slot: int, value: ServiceValue, proto: int = 6) -> None:
    key = encode_service_key(address, 80, slot, proto, slot == 7)
    maps.of(address).service.update(key, encode_service(value))


def test_empty_maps_are_the_empty_text() -> None:
    assert dump(LBMaps.fake()) == ""


def test_lines_of_all_maps_are_sorted_as_text() -> None:
    maps = LBMaps.fake()
    for slot in (0, 2, 10):
        put(maps, V4, slot, ServiceValue(backend_id=slot, rev_nat=10, count=3 - slot // 5))
    put(maps, V4, 7, ServiceValue(backend_id=3, rev_nat=2))
    put(maps, V6, 0, ServiceValue(rev_nat=1, affinity_timeout_s=42, algorithm=2, type=3), 132)
    put(maps, V6, 1, ServiceValue(rev_nat=1), 99)
    maps.v4.backend.update(encode_id(2), encode_backend(BackendValue(V4, 8080, 17, 1)))
    maps.v6.backend.update(
        encode_id(10), encode_backend(BackendValue(V6, 8080, 6, EntryState.QUARANTINED))
    )
    maps.v6.rev_nat.update(encode_id(1), encode_rev_nat(RevNatValue(V6, 53)))
    assert dump(maps).splitlines(keepends=True) == [
        "BE: ID=10 ADDR=[2001::1]:8080/TCP STATE=quarantined\n",
        "BE: ID=2 ADDR=10.96.0.1:8080/UDP STATE=terminating\n",
        "REV: ID=1 ADDR=[2001::1]:53\n",
        "SVC: ID=1 ADDR=[2001::1]:80/ANY SLOT=1 BEID=0 COUNT=0 QCOUNT=0 FLAGS=ClusterIP\n",
        "SVC: ID=1 ADDR=[2001::1]:80/SCTP SLOT=0 LBALG=maglev AFFTimeout=42 COUNT=0 QCOUNT=0 "
        "FLAGS=LoadBalancer\n",
        "SVC: ID=10 ADDR=10.96.0.1:80/TCP SLOT=0 LBALG=undef AFFTimeout=0 COUNT=3 QCOUNT=0 "
        "FLAGS=ClusterIP\n",
        "SVC: ID=10 ADDR=10.96.0.1:80/TCP SLOT=10 BEID=10 COUNT=1 QCOUNT=0 FLAGS=ClusterIP\n",
        "SVC: ID=10 ADDR=10.96.0.1:80/TCP SLOT=2 BEID=2 COUNT=3 QCOUNT=0 FLAGS=ClusterIP\n",
        "SVC: ID=2 ADDR=10.96.0.1:80/TCP/i SLOT=7 BEID=3 COUNT=0 QCOUNT=0 FLAGS=ClusterIP\n",
    ]


def test_proxy_port_takes_the_place_of_algorithm_and_affinity() -> None:
    maps = LBMaps.fake()
    put(maps, V4, 0, ServiceValue(rev_nat=1, flags=ServiceFlag.L7, l7_port=1000))
    assert " SLOT=0 L7Proxy=1000 COUNT=0 " in dump(maps)


def test_all_flags_in_their_order() -> None:
    value = ServiceValue(
        flags=0x1FFF, type=FrontendType.HOST_PORT.number, algorithm=Algorithm.RANDOM
    )
    assert flags_text(value) == (
        "HostPort+Local+InternalLocal+two-scopes+sessionAffinity+non-routable+check source-range+"
        "deny+46x64+l7-load-balancer+loopback+delegate-if-local+quarantined+dsr"
    )


def test_types_by_name() -> None:
    names = [flags_text(ServiceValue(type=number)) for number in range(7)]
    assert names == [
        "ClusterIP",
        "NodePort",
        "ExternalIPs",
        "LoadBalancer",
        "HostPort",
        "LocalRedirect",
        "6",  # of another build
    ]


def test_v6_address_that_looks_like_v4_stays_v6() -> None:
    maps = LBMaps.fake()
    maps.v6.rev_nat.update(encode_id(1), encode_rev_nat(RevNatValue(bytes(12) + V4, 80)))
    assert dump(maps) == "REV: ID=1 ADDR=[::a60:1]:80\n"

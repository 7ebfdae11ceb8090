# SPDX-License-Identifier: Apache-2.0
"""Fake maps seen without ids, what rows want in the same form, and what must hold at any moment."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from bpf.maps.lb import (
    LBFamilyMaps,
    LBMaps,
    decode_affinity_match,
    decode_backend,
    decode_id,
    decode_rev_nat,
    decode_service,
    decode_service_key,
    decode_source_range,
    encode_id,
    encode_service_key,
)
from bpf.maps.tables import MARK_BYTES
from reconcilers.loadbalancer.maglev import Member
from tables.addressing import IP, L3n4Addr
from tables.loadbalancer.backends import BackendState
from tables.loadbalancer.frontends import Frontend
from tests.reconcilers.loadbalancer.maglev_model import lookup_table

PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP", 0: "ANY"}
STATES = {
    BackendState.ACTIVE: 0,
    BackendState.TERMINATING: 1,
    BackendState.TERMINATING_NOT_SERVING: 1,
    BackendState.QUARANTINED: 2,
    BackendState.MAINTENANCE: 3,
}


class Seen(NamedTuple):
    """One frontend: how many of its slots are in use or kept, the backends in slot order."""

    used: int
    qcount: int
    backends: tuple[str, ...]


def text(address: bytes, port: int, proto: int, scope: int = 0) -> str:
    ip = IP(address if len(address) == 16 else b"\0" * 10 + b"\xff\xff" + address)
    host = f"[{ip}]" if ip.is_ipv6 else str(ip)
    return f"{host}:{port}/{PROTOCOLS[proto]}" + ("/i" if scope else "")


class Broken(BaseException):
    """Traffic would be lost; no exception, so that no reconciler takes it for a failed write."""


def check_reachable(maps: LBMaps) -> None:
    """What holds after each single write: a master entry leads to slots and those to backends.

    Raises: Broken.
    """
    try:
        _check_reachable(maps)
    except AssertionError as error:
        raise Broken(str(error)) from error


def _check_reachable(maps: LBMaps) -> None:
    for family in (maps.v4, maps.v6):
        for raw_key, raw_value in family.service.items():
            key, value = decode_service_key(raw_key), decode_service(raw_value)
            if key.slot:
                continue
            for slot in range(1, value.count + value.qcount + 1):
                raw_slot = family.service.lookup(
                    encode_service_key(key.address, key.port, slot, key.proto, key.scope)
                )
                assert raw_slot is not None, f"{key} has no slot {slot}"
                number = decode_service(raw_slot).backend_id
                assert family.backend.lookup(encode_id(number)), f"{key} slot {slot}: no {number}"
            for number in set(table_of(family, value.rev_nat)):
                assert family.backend.lookup(encode_id(number)), f"{key} table: no {number}"
            if value.rev_nat:
                assert family.rev_nat.lookup(encode_id(value.rev_nat)), f"{key}: no way back"


class Details(NamedTuple):
    """What only some frontends have: who may keep clients, whose clients, positions by backend."""

    affinity: frozenset[str] = frozenset()
    ranges: frozenset[str] = frozenset()
    table: tuple[tuple[str, int], ...] = ()


def table_of(family: LBFamilyMaps, number: int) -> list[int]:
    table = family.maglev.lookup(encode_id(number)) or bytes(MARK_BYTES)
    return [number for number in array("I", table[:-MARK_BYTES]) if number]


def seen_details(maps: LBMaps) -> dict[str, Details]:
    """By address, of frontends that have any; checks that there are none without frontend."""
    found: dict[str, Details] = {}
    for family in (maps.v4, maps.v6):
        by_id = {}
        for raw_key, raw_value in family.backend.items():
            be = decode_backend(raw_value)
            by_id[decode_id(raw_key)] = text(be.address, be.port, be.proto)
        matches = [decode_affinity_match(key) for key, _ in family.affinity_match.items()]
        sources = [decode_source_range(key) for key, _ in family.source.items()]
        tables = {decode_id(key) for key, _ in family.maglev.items()}
        numbers = set()
        for raw_key, raw_value in family.service.items():
            key, number = decode_service_key(raw_key), decode_service(raw_value).rev_nat
            if key.slot or not number:
                continue
            numbers.add(number)
            details = Details(
                frozenset(by_id[m.backend_id] for m in matches if m.rev_nat == number),
                frozenset(
                    f"{ip_address(s.address)}/{s.length}" for s in sources if s.rev_nat == number
                ),
                tuple(sorted(Counter(by_id[n] for n in table_of(family, number)).items())),
            )
            if details != Details():
                found[text(key.address, key.port, key.proto, key.scope)] = details
        assert {m.rev_nat for m in matches} | {s.rev_nat for s in sources} | tables <= numbers
    return found


def wanted_details(
    rows: Iterable[Frontend], node_ports: Iterable[str], size: int
) -> dict[str, Details]:
    """The same from the rows, naively."""
    found: dict[str, Details] = {}
    for fe in sorted(rows, key=lambda fe: not fe.address.is_surrogate):
        for address in (fe.address, *_expanded(fe, node_ports)):
            healthy = [be for be in fe.backends if not be.unhealthy]
            used = [be for be in healthy if be.state is BackendState.ACTIVE] or [
                be for be in healthy if be.state is BackendState.TERMINATING
            ]
            members = [Member(f"[{be.address},State:active]", i) for i, be in enumerate(used)]
            has_table = members and not address.is_surrogate
            table = lookup_table(members, size) if has_table else []
            details = Details(
                frozenset(str(be.address) for be in used if fe.service.affinity_timeout_s),
                frozenset(
                    str(cidr)
                    for cidr in fe.service.source_ranges
                    if (cidr.version == 6) is address.is_ipv6
                ),
                tuple(sorted(Counter(str(used[i].address) for i in table).items())),
            )
            found.pop(str(address), None)
            if details != Details():
                found[str(address)] = details
    return found


def _expanded(fe: Frontend, node_ports: Iterable[str]) -> list[L3n4Addr]:
    if not fe.address.is_surrogate:
        return []
    nodes = map(IP.parse, node_ports)
    return [fe.address.with_ip(ip) for ip in nodes if ip.is_ipv6 == fe.address.is_ipv6]


def seen(maps: LBMaps) -> tuple[dict[str, Seen], dict[str, int]]:
    """Frontends by address, and states of backends by address; checks ids on the way."""
    frontends: dict[str, Seen] = {}
    backends: dict[str, int] = {}
    numbers: set[int] = set()
    for family in (maps.v4, maps.v6):
        by_id = {}
        for raw_key, raw_value in family.backend.items():
            be = decode_backend(raw_value)
            address = text(be.address, be.port, be.proto)
            assert address not in backends, f"two entries for {address}"
            backends[address] = be.state
            by_id[decode_id(raw_key)] = address
        _add_frontends(family, by_id, frontends, numbers)
    return frontends, backends


def _add_frontends(
    family: LBFamilyMaps, by_id: dict[int, str], frontends: dict[str, Seen], numbers: set[int]
) -> None:
    slots: dict[str, dict[int, str]] = {}
    for raw_key, raw_value in family.service.items():
        key, value = decode_service_key(raw_key), decode_service(raw_value)
        if key.slot:
            address = text(key.address, key.port, key.proto, key.scope)
            slots.setdefault(address, {})[key.slot] = by_id[value.backend_id]
    rev_nats = {decode_id(k): decode_rev_nat(v) for k, v in family.rev_nat.items()}
    for raw_key, raw_value in family.service.items():
        key, value = decode_service_key(raw_key), decode_service(raw_value)
        if key.slot or not value.rev_nat:
            continue
        address = text(key.address, key.port, key.proto, key.scope)
        rev_nat = rev_nats.pop(value.rev_nat)
        assert (rev_nat.address, rev_nat.port) == (key.address, key.port)
        assert value.rev_nat not in numbers, f"id {value.rev_nat} is given out twice"
        numbers.add(value.rev_nat)
        own = slots.pop(address, {})
        assert sorted(own) == list(range(1, len(own) + 1))
        frontends[address] = Seen(
            value.count, value.qcount, tuple(own[slot] for slot in sorted(own))
        )
    assert not slots, f"slots without master entry: {slots}"
    assert not rev_nats, f"reverse entries without frontend: {rev_nats}"


def wanted(
    rows: Iterable[Frontend], node_ports: Iterable[str]
) -> tuple[dict[str, Seen], dict[str, int]]:
    """The same from the rows, naively; a backend of several rows has the best state of any."""
    rows = list(rows)
    frontends: dict[str, Seen] = {}
    backends: dict[str, int] = {}
    for fe in sorted(rows, key=lambda fe: not fe.address.is_surrogate):
        expected = _wanted(fe)
        for be in fe.backends:
            address = str(be.address)
            backends[address] = min(STATES[be.state], backends.get(address, 9))
        frontends[str(fe.address)] = expected
        for expanded in _expanded(fe, node_ports):
            frontends[str(expanded)] = expected
    return frontends, backends


def _wanted(fe: Frontend) -> Seen:
    healthy = {
        state: [be for be in fe.backends if not be.unhealthy and be.state is state]
        for state in BackendState
    }
    unhealthy = [
        be
        for state in BackendState
        for be in fe.backends
        if be.unhealthy and be.state is state and state is not BackendState.MAINTENANCE
    ]
    shown = [
        be
        for state in BackendState
        if state is not BackendState.MAINTENANCE
        for be in healthy[state]
    ] + unhealthy
    count = len(healthy[BackendState.ACTIVE]) or len(healthy[BackendState.TERMINATING])
    return Seen(count, len(shown) - count, tuple(str(be.address) for be in shown))

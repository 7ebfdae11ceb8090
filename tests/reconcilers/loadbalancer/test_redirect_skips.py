# SPDX-License-Identifier: Apache-2.0
"""Entries that two rows want, failures between, and what a predecessor left."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from bpf.errors import KernelError
from bpf.maps.fake import FaultyMap
from bpf.maps.redirect_skips import VALUE, SkipKey, SkipMaps, decode_key, dump, encode_key, line
from reconcilers.loadbalancer.redirect_skips import RedirectSkipOperations
from statedb import DB
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.loadbalancer.redirect_skips import RedirectSkip

TXN = DB().read_txn()


def row(policy: str, *addresses: str, cookie: int | None = 7) -> RedirectSkip:
    frontends = tuple(map(L3n4Addr.parse, addresses))
    return RedirectSkip("test/one", ServiceName(f"test/{policy}"), frontends, cookie)


A, B, SIX = "10.0.0.1:80/TCP", "10.0.0.2:53/UDP", "[fd00::1]:80/TCP"
LINES = {
    A: "COOKIE=7 IP=10.0.0.1 PORT=80\n",
    B: "COOKIE=7 IP=10.0.0.2 PORT=53\n",
    SIX: "COOKIE=7 IP=fd00::1 PORT=80\n",
}


@pytest.mark.parametrize("address", [bytes([10, 1, 2, 3]), bytes(range(16))])
def test_key_is_read_as_it_was_written(address: bytes) -> None:
    key = SkipKey(0x0102030405060708, address, 0x1F90)
    raw = encode_key(key)
    assert decode_key(raw) == key
    assert raw[8 + len(address) :][:2] == b"\x1f\x90"


def test_an_entry_stays_while_another_row_wants_it() -> None:
    maps = SkipMaps.fake()
    ops = RedirectSkipOperations(maps)
    ops.update(TXN, 1, row("one", A, B))
    ops.update(TXN, 2, row("two", A, SIX))
    assert dump(maps) == LINES[A] + LINES[B] + LINES[SIX]
    ops.delete(TXN, 3, row("one", A, B))
    assert dump(maps) == LINES[A] + LINES[SIX]
    ops.update(TXN, 4, row("two", SIX))
    assert dump(maps) == LINES[SIX]


def test_a_namespace_that_changes_takes_its_entries_along() -> None:
    maps = SkipMaps.fake()
    ops = RedirectSkipOperations(maps)
    ops.update(TXN, 1, row("one", A))
    ops.update(TXN, 2, row("one", A, cookie=8))
    assert dump(maps) == LINES[A].replace("=7", "=8")
    ops.update(TXN, 3, row("one", A, cookie=None))
    assert dump(maps) == ""


def test_packets_are_spared_by_the_addresses_of_their_family() -> None:
    maps = SkipMaps.fake()
    ops = RedirectSkipOperations(maps)
    ips = ("10.0.1.7", "fd00:1::7")
    pod = msgspec.structs.replace(
        row("one", A, SIX, cookie=None), pod_addresses=tuple(map(IP.parse, ips))
    )
    ops.update(TXN, 1, pod)
    assert dump(maps) == ""
    found = {line(key) for raw in (maps.pod4, maps.pod6) for key, _ in raw.items()}
    assert found == {"POD=10.0.1.7 IP=10.0.0.1 PORT=80", "POD=fd00:1::7 IP=fd00::1 PORT=80"}
    ops.delete(TXN, 2, pod)
    assert not any(list(raw.items()) for raw in maps)


def test_what_a_predecessor_left_goes_with_the_prune() -> None:
    maps = SkipMaps.fake()
    for address in (A, B):
        addr = L3n4Addr.parse(address)
        maps.v4.update(encode_key(SkipKey(7, addr.ip.packed, addr.port)), VALUE)
    ops = RedirectSkipOperations(maps)
    ops.update(TXN, 1, row("one", A))
    ops.prune(TXN, [row("one", A)])
    assert dump(maps) == LINES[A]


def test_nothing_is_forgotten_when_writes_fail() -> None:
    maps = SkipMaps.fake()
    rng = Random(1)
    ops = RedirectSkipOperations(maps.wrap(lambda raw: FaultyMap(raw, 0.5, rng)))

    def until_done(*states: RedirectSkip) -> None:
        for state in states:
            for _ in range(100):
                try:
                    ops.update(TXN, 1, state)
                except KernelError:
                    continue
                break

    for _ in range(50):
        until_done(row("one", A, B, SIX), row("two", A), row("one", B), row("two", B))
        assert dump(maps) == LINES[B]
        for name in ("one", "two"):
            while True:
                try:
                    ops.delete(TXN, 2, row(name, B))
                except KernelError:
                    continue
                break
        assert dump(maps) == ""

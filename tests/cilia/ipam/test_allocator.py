# SPDX-License-Identifier: Apache-2.0
"""Addresses of a pool against a simple model: nobody has another one's, freed ones rest."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cilia.ipam.allocator import (
    QUARANTINE_S,
    ROUTER,
    AddressTaken,
    Allocator,
    NoPool,
    PoolExhausted,
    router_of,
)
from statedb import DB
from tables.addressing import IP, Prefix
from tables.ipam.ip_allocations import new_ip_allocations_table

POOL4, POOL6 = Prefix.parse("10.1.0.0/28"), Prefix.parse("fd00:1::/124")
FIRST_LAST = {"10.1.0.0", "10.1.0.15", "fd00:1::"}


class World:
    def __init__(self) -> None:
        self.db = DB("ipam")
        self.table = new_ip_allocations_table(self.db)
        self.now = 0.0
        self.allocator = self.anew()

    def anew(self) -> Allocator:
        return Allocator(self.table, clock=lambda: self.now)

    def allocate(self, owner: str, number: int, *pools: Prefix) -> tuple[IP | None, IP | None]:
        with self.db.write_txn(self.table) as wtxn:
            return self.allocator.allocate(wtxn, pools or (POOL4, POOL6), owner, number)

    def claim(self, ip: IP, owner: str, number: int = 0) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.allocator.claim(wtxn, ip, owner, number)

    def release(self, ip: IP, number: int) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.allocator.release(wtxn, ip, number)

    def forget(self, ip: IP) -> None:
        with self.db.write_txn(self.table) as wtxn:
            row = self.table.get(wtxn, ip)
            assert row is not None
            self.allocator.forgotten(wtxn, row)


def test_families_come_together_and_the_gateway_is_nobodys() -> None:
    world = World()
    for pool in (POOL4, POOL6):
        world.claim(router_of(pool), ROUTER)
    assert list(map(str, world.allocate("a", 1))) == ["10.1.0.2", "fd00:1::2"]
    assert list(map(str, world.allocate("b", 2))) == ["10.1.0.3", "fd00:1::3"]
    assert world.allocate("c", 3, POOL4) == (IP.parse("10.1.0.4"), None)


def test_nothing_is_taken_when_one_family_is_full() -> None:
    world = World()
    small = Prefix.parse("fd00:2::/126")
    for number in range(1, 4):
        world.allocate("a", number, POOL4, small)
    with pytest.raises(PoolExhausted, match="no address of fd00:2::/126 is free: 3 in use"):
        world.allocate("b", 9, POOL4, small)
    rows = world.db.look(lambda txn: [r for r in world.table.all(txn) if r.endpoint_id == 9])
    assert rows == []


def test_what_is_claimed_already_is_not_written_again() -> None:
    """Who claims looks again at each write."""
    world = World()
    for _ in range(3):
        world.claim(router_of(POOL4), ROUTER)
    assert world.db.look(world.table.revision) == 1


def test_an_address_rests_until_the_datapath_has_forgotten_it() -> None:
    world = World()
    small = Prefix.parse("10.2.0.0/30")
    (ip, _), (other, _) = (world.allocate("a", number, small) for number in (1, 2))
    assert ip is not None
    world.release(ip, 1)
    world.now += QUARANTINE_S + 1
    with pytest.raises(PoolExhausted, match="1 in use, 1 of deleted pods rest"):
        world.allocate("b", 3, small)
    assert "is free" in world.db.look(lambda txn: world.allocator.lacks(txn, (small,)))
    world.forget(ip)
    assert world.db.look(lambda txn: world.allocator.lacks(txn, (small,))) == ""
    assert world.allocate("b", 3, small) == (ip, None)
    assert other is not None


def test_what_was_taken_since_is_not_forgotten() -> None:
    world = World()
    ip, _ = world.allocate("a", 1, POOL4)
    assert ip is not None
    world.release(ip, 1)
    freed = world.db.look(lambda txn: world.table.get(txn, ip))
    assert freed is not None
    world.claim(ip, "b", 2)
    world.release(ip, 2)
    with world.db.write_txn(world.table) as wtxn:
        world.allocator.forgotten(wtxn, freed)
    row = world.db.look(lambda txn: world.table.get(txn, ip))
    assert row is not None
    assert row.in_ipcache


def test_a_node_without_prefixes_says_so() -> None:
    world = World()
    with world.db.write_txn(world.table) as wtxn, pytest.raises(NoPool):
        world.allocator.allocate(wtxn, (), "a", 1)


class Pool(RuleBasedStateMachine):
    """Endpoints come, go, and are claimed after a restart, while time goes on."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.held: dict[IP, int] = {}
        self.rests: dict[IP, float] = {}
        self.known: set[IP] = set()  # freed, and the datapath has not forgotten it
        self.number = 0

    def _free(self, pool: Prefix) -> int:
        size = 14 if pool is POOL4 else 15
        taken = [ip for ip in (*self.held, *self._resting()) if pool.contains(ip)]
        return size - len(taken)

    def _resting(self) -> list[IP]:
        now = self.world.now
        return [ip for ip, until in self.rests.items() if until > now or ip in self.known]

    @rule()
    def allocate(self) -> None:
        self.number += 1
        room = min(self._free(POOL4), self._free(POOL6))
        try:
            found = self.world.allocate("o", self.number)
        except PoolExhausted:
            assert room == 0
            return
        assert room > 0
        for ip in found:
            assert ip is not None
            assert ip not in self.held
            assert ip not in self._resting()
            assert str(ip) not in FIRST_LAST
            self.held[ip] = self.number
            self.rests.pop(ip, None)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ip = data.draw(st.sampled_from(sorted(self.held)))
        other = data.draw(st.booleans())
        number = self.held[ip] + (1000 if other else 0)
        self.world.release(ip, number)
        if not other:
            del self.held[ip]
            self.rests[ip] = self.world.now + QUARANTINE_S
            self.known.add(ip)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        ip = data.draw(st.sampled_from(sorted(self.known)))
        self.known.remove(ip)
        self.world.forget(ip)

    @rule(seconds=st.sampled_from([1.0, 29.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule()
    def restart(self) -> None:
        """Only the rows of endpoints are claimed; where the search goes on is forgotten."""
        held = self.held
        before = self.world.now
        self.world = World()
        self.world.now = before
        self.rests = {}
        self.known = set()
        for ip, number in held.items():
            self.world.claim(ip, "o", number)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def claim_of_another(self, data: st.DataObject) -> None:
        ip = data.draw(st.sampled_from(sorted(self.held)))
        with pytest.raises(AddressTaken):
            self.world.claim(ip, "thief", 5000)

    @invariant()
    def rows_are_those_of_the_model(self) -> None:
        rows = self.world.db.look(lambda txn: list(self.world.table.all(txn)))
        in_use = {row.ip: row.endpoint_id for row in rows if not row.free_at}
        assert in_use == self.held


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

# SPDX-License-Identifier: Apache-2.0
"""Claims against a simple model: the best source wins, of one source the newest claim."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cilia.identity.ipcache.writer import IPCacheWriter
from statedb import DB, StatusKind
from statedb.status import done, set_status
from tables.addressing import IP, Prefix
from tables.identity.ipcache import Claim, IPCacheEntry, new_ipcache_table
from tables.sources import PRIORITY, Source

ADDRESS = Prefix.parse("10.0.0.5/32")
PREFIXES = (ADDRESS, Prefix.parse("10.0.0.0/24"), Prefix.parse("fd00::5/128"))
SOURCES = (Source.KUBE_APISERVER, Source.LOCAL, Source.K8S, Source.RESTORED)


def claim(source: Source, owner: str, identity: int, host: str = "") -> Claim:
    where = IP.parse(host) if host else None
    return Claim(source=source, owner=owner, identity=identity, host=where)


class World:
    def __init__(self) -> None:
        self.db = DB()
        self.table = new_ipcache_table(self.db)
        self.writer = IPCacheWriter(self.table)

    def upsert(self, prefix: Prefix, made: Claim, cluster_id: int = 0) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.writer.upsert(wtxn, prefix, made, cluster_id)

    def delete(self, prefix: Prefix, source: Source, owner: str, cluster_id: int = 0) -> None:
        with self.db.write_txn(self.table) as wtxn:
            self.writer.delete(wtxn, prefix, source, owner, cluster_id)

    def row(self, prefix: Prefix = ADDRESS, cluster_id: int = 0) -> IPCacheEntry | None:
        return self.db.look(lambda txn: self.table.get(txn, (cluster_id, prefix)))

    def identity(self, prefix: Prefix = ADDRESS) -> int:
        row = self.row(prefix)
        return 0 if row is None else row.in_force.identity

    def reconciled(self) -> None:
        """All is in force, as the reconciler says it."""
        with self.db.write_txn(self.table) as wtxn:
            for row in list(self.table.all(wtxn)):
                self.table.insert(wtxn, set_status(row, done()))


def test_the_sources_are_in_the_order_of_the_field() -> None:
    names = [source.value for source in sorted(Source, key=PRIORITY.__getitem__)]
    assert names == [
        *("kube-apiserver", "local", "kvstore", "custom-resource", "k8s", "clustermesh"),
        *("directory", "api", "generated", "restored", ""),
    ]


@pytest.mark.parametrize("new_first", [False, True])
def test_an_address_that_is_given_anew_is_its_new_owners_in_either_order(
    *, new_first: bool
) -> None:
    world = World()
    world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 1", 300))
    steps: list[Callable[[], None]] = [
        lambda: world.delete(ADDRESS, Source.LOCAL, "endpoint 1"),
        lambda: world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 2", 400)),
    ]
    for step in reversed(steps) if new_first else steps:
        step()
    assert world.identity() == 400
    world.delete(ADDRESS, Source.LOCAL, "endpoint 1")
    assert world.identity() == 400


def test_a_change_of_the_former_owner_does_not_take_the_address_back() -> None:
    world = World()
    world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 1", 300))
    world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 2", 400))
    world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 1", 301))
    assert world.identity() == 400
    world.delete(ADDRESS, Source.LOCAL, "endpoint 2")
    assert world.identity() == 301


def test_a_shadowed_claim_counts_again_when_the_better_one_goes() -> None:
    world = World()
    world.upsert(ADDRESS, claim(Source.GENERATED, "policy", 1 << 24))
    world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 1", 300))
    world.upsert(ADDRESS, claim(Source.GENERATED, "policy", (1 << 24) + 1))
    assert world.identity() == 300
    world.delete(ADDRESS, Source.LOCAL, "endpoint 1")
    assert world.identity() == (1 << 24) + 1


def test_the_same_owner_with_another_source_is_another_claim() -> None:
    world = World()
    world.upsert(ADDRESS, claim(Source.LOCAL, "x", 300))
    world.delete(ADDRESS, Source.K8S, "x")
    assert world.identity() == 300


def test_prefixes_of_another_cluster_are_other_prefixes() -> None:
    world = World()
    world.upsert(ADDRESS, claim(Source.LOCAL, "x", 300))
    world.upsert(ADDRESS, claim(Source.CLUSTERMESH, "y", 400), cluster_id=3)
    world.delete(ADDRESS, Source.LOCAL, "x")
    assert world.row() is None
    other = world.row(ADDRESS, 3)
    assert other is not None
    assert other.in_force.identity == 400


def test_only_what_programs_see_asks_for_the_reconciler() -> None:
    world = World()
    world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 1", 300))
    world.reconciled()
    world.upsert(ADDRESS, claim(Source.K8S, "node two", 6))
    world.upsert(ADDRESS, claim(Source.LOCAL, "endpoint 2", 300))
    world.delete(ADDRESS, Source.LOCAL, "endpoint 1")
    row = world.row()
    assert row is not None
    assert row.status.kind is StatusKind.DONE
    for number, changed in enumerate(
        (
            claim(Source.LOCAL, "endpoint 2", 301),
            claim(Source.LOCAL, "endpoint 2", 301, host="192.0.2.2"),
        )
    ):
        world.reconciled()
        world.upsert(ADDRESS, changed)
        row = world.row()
        assert row is not None
        assert row.status.kind is StatusKind.PENDING, number


def test_a_claim_that_is_made_again_writes_nothing() -> None:
    world = World()
    for _ in range(3):
        world.upsert(ADDRESS, claim(Source.LOCAL, "x", 300))
    world.delete(ADDRESS, Source.LOCAL, "y")
    assert world.db.look(world.table.revision) == 1


class Claiming(RuleBasedStateMachine):
    """The model keeps all claims of a prefix with the order in which they were first made."""

    prefixes = st.sampled_from(PREFIXES)
    sources = st.sampled_from(SOURCES)
    owners = st.sampled_from(["a", "b", "c"])

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.order = itertools.count()
        self.claims: dict[tuple[Prefix, Source, str], tuple[int, int]] = {}

    @rule(prefix=prefixes, source=sources, owner=owners, identity=st.integers(1, 4))
    def upsert(self, prefix: Prefix, source: Source, owner: str, identity: int) -> None:
        self.world.upsert(prefix, claim(source, owner, identity))
        first, _ = self.claims.get((prefix, source, owner), (next(self.order), 0))
        self.claims[prefix, source, owner] = (first, identity)

    @rule(prefix=prefixes, source=sources, owner=owners)
    def delete(self, prefix: Prefix, source: Source, owner: str) -> None:
        self.world.delete(prefix, source, owner)
        self.claims.pop((prefix, source, owner), None)

    @rule(prefix=prefixes, source=sources, before=owners, after=owners, identity=st.integers(1, 4))
    def exchange(
        self, prefix: Prefix, source: Source, before: str, after: str, identity: int
    ) -> None:
        old, new = claim(source, before, 1), claim(source, after, identity)
        with self.world.db.write_txn(self.world.table) as wtxn:
            self.world.writer.exchange(wtxn, [({prefix: old}, {prefix: new})])
        first, _ = self.claims.get((prefix, source, after), (next(self.order), 0))
        self.claims[prefix, source, after] = (first, identity)
        if before != after:
            self.claims.pop((prefix, source, before), None)

    @rule()
    def reconcile(self) -> None:
        self.world.reconciled()

    @invariant()
    def rows_are_those_of_the_model(self) -> None:
        for prefix in PREFIXES:
            mine = [
                (PRIORITY[source], -first, source, owner, identity)
                for (of, source, owner), (first, identity) in self.claims.items()
                if of == prefix
            ]
            row = self.world.row(prefix)
            found = [] if row is None else [(c.source, c.owner, c.identity) for c in row.claims]
            assert found == [(*rest,) for _, _, *rest in sorted(mine)]


TestClaiming = Claiming.TestCase
TestClaiming.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

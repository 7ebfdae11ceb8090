# SPDX-License-Identifier: Apache-2.0
"""Who leads: never two, soon another, and nobody who could not renew."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from cilia.operator.election import Election, Timing

from .api import FakeApi

FAST = Timing(lease_s=1.0, renew_deadline_s=0.4, retry_s=0.05)
LEASE = "/apis/coordination.k8s.io/v1/namespaces/n/leases/l"


class Replica:
    """A candidate whose work is to be counted."""

    working: set[str] = set()  # noqa: RUF012  # shared by all on purpose: reset by each test
    overlaps = 0

    def __init__(self, api: FakeApi, name: str) -> None:
        self.name = name
        self.election = Election(api, "n", "l", name, FAST)
        self.scope = anyio.CancelScope()
        self.began = 0.0

    async def run(self) -> None:
        with self.scope:
            await self.election.run(self.lead)

    async def lead(self) -> None:
        Replica.working.add(self.name)
        Replica.overlaps += len(Replica.working) > 1
        self.began = time.monotonic()
        try:
            await anyio.sleep_forever()
        finally:
            Replica.working.discard(self.name)


@asynccontextmanager
async def replicas(*pairs: tuple[str, FakeApi]) -> AsyncIterator[list[Replica]]:
    Replica.working, Replica.overlaps = set(), 0
    made = [Replica(api, name) for name, api in pairs]
    async with anyio.create_task_group() as group:
        for replica in made:
            group.start_soon(replica.run)
        yield made
        group.cancel_scope.cancel()
    assert Replica.overlaps == 0


async def until(said: object, what: object) -> None:
    """Wait until the set is as said."""
    with anyio.fail_after(5):
        while said != what:
            await anyio.sleep(0.005)


class SameStore(FakeApi):
    """The way of one replica to the server of another; each may fail alone."""

    def __init__(self, store: FakeApi) -> None:
        super().__init__()
        self.objects, self._versions = store.objects, store._versions


async def test_one_of_two_leads_and_the_other_takes_over_when_it_ends_in_order() -> None:
    api = FakeApi()
    async with replicas(("a", api), ("b", SameStore(api))) as (a, b):
        await until(Replica.working, {"a"})
        await anyio.sleep(0.3)
        assert Replica.working == {"a"} and b.election.leader == "a" and not b.election.leading
        began = time.monotonic()
        a.scope.cancel()
        await until(Replica.working, {"b"})
        assert time.monotonic() - began < FAST.renew_deadline_s
        assert b.election.transitions == 1


async def test_a_leader_that_says_nothing_more_is_replaced_after_its_lease() -> None:
    api = FakeApi()
    dead = {"holderIdentity": "dead", "leaseDurationSeconds": 1, "leaseTransitions": 3}
    api.objects[LEASE] = {"metadata": {"name": "l", "resourceVersion": "x"}, "spec": dead}
    began = time.monotonic()
    async with replicas(("b", api)) as (b,):
        await until(Replica.working, {"b"})
        assert 1.0 <= b.began - began < 1.4, "by the time since it was seen, not by any clock"
        assert api.objects[LEASE]["spec"]["leaseTransitions"] == 4


@pytest.mark.parametrize("how", ["away", "silent"])
async def test_a_leader_that_cannot_renew_ends_before_another_begins(how: str) -> None:
    api = FakeApi()
    own = SameStore(api)
    async with replicas(("a", own)) as (a,):
        await until(Replica.working, {"a"})
        await anyio.sleep(0.2)
        setattr(own, how, True)
        lost = time.monotonic()
        async with anyio.create_task_group() as group:
            b = Replica(api, "b")
            group.start_soon(b.run)
            await until(Replica.working, set())
            assert time.monotonic() - lost < FAST.lease_s - 0.2
            await until(Replica.working, {"b"})
            setattr(own, how, False)
            await anyio.sleep(0.3)
            assert Replica.working == {"b"} and a.election.leader == "b"
            group.cancel_scope.cancel()


async def test_a_leader_whose_lease_another_has_ends_at_once() -> None:
    api = FakeApi()
    async with replicas(("a", api)):
        await until(Replica.working, {"a"})
        lease = api.objects[LEASE]
        lease["spec"]["holderIdentity"], lease["metadata"]["resourceVersion"] = "thief", "t"
        taken = time.monotonic()
        await until(Replica.working, set())
        assert time.monotonic() - taken < FAST.renew_deadline_s / 2


async def test_a_leader_goes_on_through_a_short_absence_of_the_server() -> None:
    api = FakeApi()
    async with replicas(("a", api)) as (a,):
        await until(Replica.working, {"a"})
        began = a.began
        api.away = True
        await anyio.sleep(0.2)
        api.away = False
        await anyio.sleep(0.5)
        assert Replica.working == {"a"} and a.began == began


async def test_of_many_that_begin_together_one_leads() -> None:
    api = FakeApi()
    async with replicas(*((f"r{n}", SameStore(api)) for n in range(8))):
        await anyio.sleep(0.4)
        assert len(Replica.working) == 1


@pytest.mark.parametrize("times", [(1, 1, 0.1), (1, 0.5, 0.5), (1, 2, 0.1), (1, 0.5, 0)])
def test_times_with_which_two_would_lead_are_refused(times: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="retry period < renew deadline < lease duration"):
        Timing(*times)


@pytest.mark.parametrize("how", ["away", "silent"])
async def test_a_lease_that_ran_out_is_nobodys_and_says_why(how: str) -> None:
    """Nobody leads where nobody can write, and each replica knows it."""
    ours, theirs = FakeApi(), FakeApi()
    theirs.objects, theirs._versions = ours.objects, ours._versions
    async with replicas(("a", ours), ("b", theirs)) as both:
        await until(Replica.working, {"a"})
        with anyio.fail_after(5):
            while any(replica.election.present_leader != "a" for replica in both):
                await anyio.sleep(0.005)
        assert [replica.election.failure for replica in both] == ["", ""]
        for api in (ours, theirs):
            setattr(api, how, True)
        with anyio.fail_after(10):
            while any(r.election.present_leader or not r.election.failure for r in both):
                await anyio.sleep(0.005)
        assert {r.election.leader for r in both} == {"a"}, "who it was is known"
        for api in (ours, theirs):
            setattr(api, how, False)
        with anyio.fail_after(10):
            while not any(r.election.leading for r in both):
                await anyio.sleep(0.005)
        assert "" in {r.election.failure for r in both}

# SPDX-License-Identifier: Apache-2.0
"""Events in, rows out: the reflectors of services and of problems."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilia.cluster.problems import ProblemReflector
from cilia.k8s.objects import EndpointSlice, K8sObject, Service, decode
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import PROBLEMS, Delete, Event, Invalid, Listed, Listing, Upsert
from cilia.k8s.watch import Problem as Refusal
from cilia.loadbalancer.services import reflector
from cilia.loadbalancer.services.orphans import Orphans
from cilia.loadbalancer.services.reflector import Report, ServiceReflector
from cilia.loadbalancer.services.writer import Writer
from cilia.loadbalancer.this_node import LocalNode
from statedb import ChangeIterator
from tables.addressing import ServiceName
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import Frontend, FrontendParams
from tables.sources import Source
from tests.cilia.k8s.forms import service_form, slice_form, with_metadata
from tests.cilia.loadbalancer.world import World

FRONTEND = "10.96.0.1:80/TCP"
LISTING: list[Event] = [Listing("EndpointSlice"), Listing("Service")]
LISTED: list[Event] = [Listed("EndpointSlice"), Listed("Service")]


def svc(*args: Any, notes: dict[str, str] | None = None, **fields: Any) -> Upsert:
    return Upsert(decode(with_metadata(service_form(*args, **fields), annotations=notes)))


def eps(*args: Any, **fields: Any) -> Upsert:
    return Upsert(decode(slice_form(*args, **fields)))


def no_svc(name: str = "echo") -> Delete:
    return Delete((Service.KIND, "test", name))


def no_eps(name: str = "echo-1") -> Delete:
    return Delete((EndpointSlice.KIND, "test", name))


class Reflected(World):
    """A world whose writer is driven by a reflector."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.store = ObjectStore()
        self.reports: list[Report] = []
        self.reflector = ServiceReflector(self.store, self.writer, report=self.reports.append)

    def take(self, *events: Event) -> None:
        self.reflector.apply(events)

    def is_initialized(self) -> bool:
        txn, t = self.db.read_txn(), self.tables
        return all(table.initialized(txn) for table in (t.services, t.frontends, t.backends))


@pytest.fixture
def world() -> Reflected:
    return Reflected()


def test_a_batch_with_service_and_slices_writes_each_row_once(world: Reflected) -> None:
    with world.writer.write_txn() as wtxn:
        changes: ChangeIterator[Frontend] = world.tables.frontends.changes(wtxn)
    before = world.tables.frontends.revision(world.db.read_txn())
    world.take(eps(), svc(), eps("echo-2", addresses=("10.1.0.2",)), eps(addresses=("10.1.0.3",)))
    assert world.backends_of(FRONTEND) == ["10.1.0.2:8080/TCP", "10.1.0.3:8080/TCP"]
    seen, _ = changes.next(world.db.read_txn())
    assert len(list(seen)) == 1
    assert world.tables.frontends.revision(world.db.read_txn()) - before == 1
    changes.close()


def test_slices_of_a_service_add_up_and_go_one_by_one(world: Reflected) -> None:
    world.take(svc(), eps(addresses=("10.1.0.1", "10.1.0.2")))
    world.take(eps("echo-2", addresses=("10.1.0.2", "10.1.0.3")))
    assert len(world.backends_of(FRONTEND)) == 3
    world.take(no_eps())
    # An address that another slice still has survives.
    assert world.backends_of(FRONTEND) == ["10.1.0.2:8080/TCP", "10.1.0.3:8080/TCP"]
    world.take(no_eps("echo-2"))
    assert world.backends_of(FRONTEND) == []


def test_a_slice_that_changes_its_service_takes_its_backends_along(world: Reflected) -> None:
    world.take(svc(), svc("other", "10.96.0.2"), eps())
    world.take(eps(service="other"))
    assert world.backends_of(FRONTEND) == []
    assert world.backends_of("10.96.0.2:80/TCP") == ["10.1.0.1:8080/TCP"]
    world.take(eps(service=None))
    assert world.backends_of("10.96.0.2:80/TCP") == []


def test_a_service_and_its_slices_go(world: Reflected) -> None:
    world.take(svc(), eps())
    world.take(no_svc(), no_eps())
    txn = world.db.read_txn()
    assert (world.frontends, world.tables.backends.num_objects(txn)) == ({}, 0)
    world.take(no_svc(), no_eps())


def test_services_are_written_in_the_order_of_their_events(world: Reflected) -> None:
    with world.writer.write_txn() as wtxn:
        changes: ChangeIterator[Frontend] = world.tables.frontends.changes(wtxn)
    world.take(svc("z", "10.96.0.9"), svc("a", "10.96.0.1"), eps(service="z"))
    seen, _ = changes.next(world.db.read_txn())
    assert [item.obj.service_name.name for item in seen] == ["z", "a"]
    changes.close()


def test_an_address_passes_to_a_new_service_in_one_batch(world: Reflected) -> None:
    world.take(svc("old"))
    world.take(no_svc("old"), svc("new"))
    assert world.frontends == {FRONTEND: "new"}
    assert world.problems == []


def test_tables_are_initialised_when_both_kinds_are_listed(world: Reflected) -> None:
    world.take(*LISTING, svc(), Listed("Service"))
    assert not world.is_initialized()
    world.take(eps(), Listed("EndpointSlice"))
    assert world.is_initialized()
    world.take(*LISTING, svc(), eps(), *LISTED)
    assert world.is_initialized()


def test_a_new_list_deletes_what_it_has_not(world: Reflected) -> None:
    world.take(*LISTING, svc("a", "10.96.0.1"), eps("a-1", "a"), *LISTED)
    world.take(svc("b", "10.96.0.2"), eps("b-1", "b", ("10.1.0.2",)), eps("b-2", "b"))
    world.take(*LISTING, svc("b", "10.96.0.2"), eps("b-1", "b", ("10.1.0.2",)), *LISTED)
    assert world.frontends == {"10.96.0.2:80/TCP": "b"}
    assert world.backends_of("10.96.0.2:80/TCP") == ["10.1.0.2:8080/TCP"]
    assert world.tables.backends.num_objects(world.db.read_txn()) == 1


def test_a_list_that_is_under_way_deletes_nothing(world: Reflected) -> None:
    world.take(*LISTING, svc("a", "10.96.0.1"), *LISTED)
    world.take(Listing("Service"), svc("b", "10.96.0.2"))
    assert set(world.frontends.values()) == {"a", "b"}
    world.take(Listed("Service"))
    assert set(world.frontends.values()) == {"b"}


def test_what_a_first_list_that_broke_off_had_goes_with_the_next_one(world: Reflected) -> None:
    world.take(*LISTING, svc("a", "10.96.0.1"), svc("b", "10.96.0.2"), eps("a-1", "a"))
    world.take(*LISTING, svc("b", "10.96.0.2"), *LISTED)
    assert set(world.frontends.values()) == {"b"}
    assert world.tables.backends.num_objects(world.db.read_txn()) == 0


def test_a_list_of_one_kind_leaves_the_other(world: Reflected) -> None:
    world.take(*LISTING, svc(), eps(), *LISTED)
    world.take(Listing("Service"), svc(), Listed("Service"))
    assert world.backends_of(FRONTEND) == ["10.1.0.1:8080/TCP"]


# -- problems


def test_a_slice_without_its_service_is_a_problem_once_all_is_listed(world: Reflected) -> None:
    world.take(*LISTING, eps())
    assert world.problems == []
    world.take(*LISTED)
    [problem] = world.problems
    assert problem == (
        "EndpointSlice test/echo-1: metadata.labels[kubernetes.io/service-name]: "
        "there is no Service test/echo"
    )
    assert [str(warning) for warning in world.warnings] == [problem]
    world.take(svc())
    assert world.problems == []
    world.take(no_svc())
    assert len(world.problems) == 1
    world.take(no_eps())
    assert world.problems == []


def test_a_slice_of_one_source_may_be_of_a_service_of_another() -> None:
    world, orphans = World(), Orphans()
    one = ServiceReflector(ObjectStore(), world.writer, orphans=orphans)
    other = ServiceReflector(ObjectStore(), world.writer, origin=Source.API, orphans=orphans)
    other.apply([*LISTING, eps(), eps("lost-1", service="lost"), *LISTED])
    assert world.problems == [], "the other source may have the Services"
    one.apply([*LISTING, svc(), *LISTED])
    [lost] = world.problems
    assert "there is no Service test/lost" in lost
    one.apply([no_svc()])
    assert len(world.problems) == 2
    one.apply([svc()])
    assert world.problems == [lost]
    other.apply([no_eps("lost-1")])
    assert world.problems == []


def test_a_slice_without_the_label_is_a_problem_until_it_has_one(world: Reflected) -> None:
    world.take(*LISTING, svc(), eps(service=None), *LISTED)
    assert len(world.problems) == 1
    assert "is missing" in world.problems[0]
    world.take(eps())
    assert world.problems == []
    world.take(eps(service=None))
    assert len(world.problems) == 1
    world.take(no_eps())
    assert world.problems == []


def test_an_annotation_without_meaning_is_a_problem_and_the_service_works(
    world: Reflected,
) -> None:
    world.take(svc(notes={"service.cilium.io/lb-algorithm": "best"}))
    assert world.frontends == {FRONTEND: "echo"}
    [problem] = world.problems
    assert "'best' is not one of random, maglev" in problem
    world.take(svc())
    assert world.problems == []


def test_problems_of_a_source_come_and_go() -> None:
    world = World()
    table = world.tables.problems
    reflector = ProblemReflector(ObjectStore(), world.db, table)
    refusal = Refusal("is missing", "a.yaml", 2, "Service", "test", "echo", "spec")
    reflector.apply([Invalid("manifests:a.yaml", (refusal,))])
    assert not table.initialized(world.db.read_txn())
    assert world.problems == ["a.yaml document 2: Service test/echo: spec: is missing"]
    reflector.apply([Invalid("manifests:a.yaml", (refusal,)), Listed(PROBLEMS)])
    assert table.initialized(world.db.read_txn())
    assert len(world.warnings) == 1
    reflector.apply([Invalid("manifests:a.yaml")])
    assert world.problems == []


# -- the node


def test_services_for_some_nodes_follow_the_labels_of_this_one() -> None:
    world = Reflected(node=LocalNode("here", {"zone": "a"}))
    world.take(
        svc("a", "10.96.0.1", notes={"service.cilium.io/node-selector": "zone=a"}),
        svc("b", "10.96.0.2", notes={"service.cilium.io/node-selector": "zone=b"}),
        svc("c", "10.96.0.3"),
    )
    assert world.services == ["a", "c"]
    world.writer.set_node(LocalNode("here", {"zone": "b"}))
    world.reflector.reconvert_node_dependent()
    assert world.services == ["b", "c"]
    # Those that went, or are for all nodes now, are not looked at any more.
    world.take(no_svc("a"), svc("b", "10.96.0.2"))
    world.writer.set_node(LocalNode("here", {"zone": "a"}))
    world.reflector.reconvert_node_dependent()
    assert world.services == ["b", "c"]


def test_a_failed_transaction_does_not_lose_the_end_of_the_list(world: Reflected) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    world.writer.set_redirects(fail)
    with pytest.raises(RuntimeError):
        world.take(*LISTING, svc(), *LISTED)
    assert not world.is_initialized()
    world.writer.set_redirects(None)
    # The job starts again, and with it the list.
    world.take(*LISTING, svc(), *LISTED)
    assert world.is_initialized()
    assert world.frontends == {FRONTEND: "echo"}


def test_nothing_is_complete_before_the_end_of_the_list_that_follows_a_failure(
    world: Reflected,
) -> None:
    """What the failed batch had has to come again before anything may be pruned."""

    async def run_into_failure() -> None:
        world.store.publish([svc("a"), svc("b", "10.96.0.2")])
        world.store.set_complete()
        with pytest.raises(RuntimeError):
            await world.reflector.run()

    world.writer.set_redirects(fail)
    asyncio.run(run_into_failure())
    world.writer.set_redirects(None)
    world.reflector.begin()
    world.take(Listing("Service"), svc("a"))
    assert not world.is_initialized()
    world.take(svc("b", "10.96.0.2"), Listing("EndpointSlice"), *LISTED)
    assert world.is_initialized()


def fail_for(name: str) -> Callable[[ServiceName, FrontendParams], None]:
    def redirect(service: ServiceName, params: FrontendParams) -> None:
        if service.name == name:
            raise RuntimeError("poison")

    return redirect


def test_a_service_that_cannot_be_written_harms_no_other(world: Reflected) -> None:
    world.writer.set_redirects(fail_for("bad"))
    world.take(*LISTING, svc("a"), svc("bad", "10.96.0.2"), svc("z", "10.96.0.3"), *LISTED)
    assert set(world.frontends.values()) == {"a", "z"}
    assert world.is_initialized()
    assert world.problems == ["Service test/bad: cannot be used: RuntimeError: poison"]
    world.writer.set_redirects(None)
    world.take(svc("bad", "10.96.0.2"))
    assert set(world.frontends.values()) == {"a", "bad", "z"}
    assert world.problems == []


@pytest.mark.skipif(
    not str(reflector.__file__).endswith(".py"), reason="a compiled class cannot be patched"
)
def test_a_service_that_went_in_a_failed_batch_is_gone_after_the_next_list(
    world: Reflected,
) -> None:
    world.take(*LISTING, svc("a"), svc("b", "10.96.0.2"), *LISTED)
    with pytest.raises(RuntimeError), patch.object(Writer, "_delete_service", side_effect=fail):
        world.take(no_svc("b"))
    world.take(*LISTING, svc("a"), *LISTED)
    assert set(world.frontends.values()) == {"a"}


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("broken")


class Poison:
    """Whatever is asked of it raises."""

    __getattr__ = __iter__ = __len__ = fail


def poisoned(event: Upsert, field: str) -> Upsert:
    obj = copy(event.obj)
    object.__setattr__(obj, field, Poison())
    return Upsert(obj)


@pytest.mark.parametrize("kind", ["Service", "EndpointSlice"])
def test_an_object_that_cannot_be_converted_keeps_what_it_has(world: Reflected, kind: str) -> None:
    world.take(*LISTING, svc(), eps(), *LISTED)
    service, endpoints = svc(), eps(addresses=("10.1.0.9",))
    if kind == "Service":
        world.take(poisoned(service, "spec"))
    else:
        world.take(poisoned(endpoints, "endpoints"))
    assert world.frontends == {FRONTEND: "echo"}
    assert len(world.backends_of(FRONTEND)) == 1
    [problem] = world.problems
    assert "cannot be used: " in problem  # compiled, it fails at the type before it asks
    world.take(svc(), eps())
    assert world.problems == []


def test_what_a_list_refused_keeps_what_it_has(world: Reflected) -> None:
    world.take(*LISTING, svc("a"), svc("b", "10.96.0.2"), *LISTED)
    refused = frozenset({("Service", "test", "b")})
    world.take(Listing("Service"), svc("a"), Listed("Service", refused))
    assert set(world.frontends.values()) == {"a", "b"}


def test_a_slice_of_many_ports_costs_little_for_a_service_of_many_ports(world: Reflected) -> None:
    ports = [{"name": f"p{i}", "port": i + 1} for i in range(600)]
    addresses = tuple(f"10.1.0.{i}" for i in range(1, 31))
    world.take(svc(ports=ports))
    began = time.thread_time()
    world.take(eps(addresses=addresses, ports=ports))
    took_s = time.thread_time() - began
    assert len(world.backends_of("10.96.0.1:600/TCP")) == 30
    assert took_s < 0.5  # 11 million looks took 1.7 s


# -- running


async def test_run_follows_its_source(world: Reflected) -> None:
    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                _, channel = world.tables.frontends.all_watch(world.db.read_txn())
                if not condition():
                    await channel.wait()

    world.store.publish([svc()])
    task = asyncio.create_task(world.reflector.run())
    await until(lambda: world.frontends == {FRONTEND: "echo"})
    assert not world.is_initialized()
    world.store.set_complete()
    world.store.publish([eps()])
    await until(lambda: world.backends_of(FRONTEND) == ["10.1.0.1:8080/TCP"])
    assert world.is_initialized()
    assert str(world.reports[0]) == "1 upserted, 0 deleted, 1 total objects"
    world.store.relist("Service", [])
    await until(lambda: world.frontends == {})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# -- model

objects = st.sampled_from(
    [
        svc("a", "10.96.0.1"),
        svc("a", "10.96.0.2", sessionAffinity="ClientIP"),
        svc("b", "10.96.0.3"),
        svc("b", "None"),
        eps("s1", "a"),
        eps("s1", "b", ("10.1.0.1", "10.1.0.2")),
        eps("s1", None),
        eps("s2", "a", ("10.1.0.2", "10.1.0.3")),
        eps("s2", "b", endpoints=[{"addresses": ["10.1.0.1"], "conditions": {"ready": False}}]),
        eps("s3", "c"),
        *(no_svc(name) for name in "ab"),
        *(no_eps(name) for name in ("s1", "s2", "s3")),
    ]
)


def rows_of(world: World) -> tuple[list[Any], ...]:
    txn, t = world.db.read_txn(), world.tables
    return (
        list(t.services.all(txn)),
        [(fe.address, fe.service, fe.backends) for fe in t.frontends.all(txn)],
        sorted(t.backends.all(txn), key=Backend.__repr__),
        sorted(p.origin for p in t.problems.all(txn)),
    )


def final(objects: Iterable[K8sObject]) -> Reflected:
    """A world that saw nothing but what exists in the end."""
    world = Reflected()
    world.take(*LISTING, *map(Upsert, objects), *LISTED)
    return world


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(objects, max_size=5), st.booleans()), max_size=8))
def test_any_history_ends_like_a_first_list_of_what_exists(
    batches: list[tuple[list[Event], bool]],
) -> None:
    world = Reflected()
    world.take(*LISTING, *LISTED)
    present: dict[tuple[str, str, str], K8sObject] = {}
    for events, lost in batches:
        for event in events:
            if isinstance(event, Upsert):
                present[event.obj.key] = event.obj
            elif isinstance(event, Delete):
                present.pop(event.key, None)
        if lost:
            # The watch broke: nobody heard of these, the objects are listed anew.
            world.take(*LISTING, *map(Upsert, present.values()), *LISTED)
        else:
            world.take(*events)
        assert rows_of(world) == rows_of(final(present.values()))

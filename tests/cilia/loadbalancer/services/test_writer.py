# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import msgspec
import pytest

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.writer import ServiceChange
from cilia.loadbalancer.this_node import ZONE_LABEL, LocalNode
from statedb import ChangeIterator, StatusKind
from statedb.status import done
from tables.addressing import L3n4Addr
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import Frontend, with_outcome
from tables.loadbalancer.services import TrafficDistribution
from tables.sources import Source
from tests.cilia.loadbalancer.world import World, backend, change, name_of, params, service

A, B, C = "10.96.0.1:80/TCP", "10.96.0.2:80/TCP", "10.96.0.3:80/TCP"
ONE, TWO, SIX = "10.1.0.1:80/TCP", "10.1.0.2:80/TCP", "[fd00::1]:80/TCP"


@pytest.fixture
def world() -> World:
    return World()


def acknowledge(world: World, address: str, service_id: int) -> Frontend:
    """Does what the reconciler does once a frontend is in the datapath."""
    fe = with_outcome(world.frontend(address), done(), service_id)
    with world.writer.write_txn() as wtxn:
        world.tables.frontends.insert(wtxn, fe)
    return fe


def test_a_service_with_backends_is_three_kinds_of_rows(world: World) -> None:
    world.upsert("echo", A, B, backends=[TWO, ONE, SIX])
    assert world.services == ["echo"]
    assert world.frontends == {A: "echo", B: "echo"}
    assert world.backends_of(A) == [ONE, TWO]
    fe = world.frontend(A)
    assert (fe.status.kind, fe.id, fe.service_port) == (StatusKind.PENDING, 0, 80)
    assert fe.health_check_backends is fe.backends


def test_the_same_again_writes_nothing(world: World) -> None:
    world.upsert("echo", A, backends=[ONE])
    world.upsert("other", A, B)
    before = world.revisions()
    world.upsert("echo", A, backends=[ONE])
    world.upsert("other", A, B)
    world.set_backends("echo", ONE)
    assert world.revisions() == before


def test_backends_before_the_service_are_used_when_it_comes(world: World) -> None:
    world.set_backends("echo", ONE)
    assert world.services == []
    world.upsert("echo", A)
    assert world.backends_of(A) == [ONE]


def test_a_change_of_backends_makes_its_frontends_pending_and_keeps_their_id(world: World) -> None:
    world.upsert("echo", A, backends=[ONE])
    world.upsert("other", B)
    acknowledge(world, A, 7)
    acknowledge(world, B, 8)
    world.set_backends("echo", TWO)
    assert (world.frontend(A).status.kind, world.frontend(A).id) == (StatusKind.PENDING, 7)
    assert world.frontend(B).status.kind is StatusKind.DONE
    assert world.backends_of(A) == [TWO]


def test_a_backend_that_no_frontend_shows_leaves_them_done(world: World) -> None:
    world.upsert("echo", A, backends=[ONE])
    acknowledge(world, A, 7)
    world.set_backends("echo", ONE, SIX)
    assert world.frontend(A).status.kind is StatusKind.DONE


def test_an_error_is_not_forgotten_by_a_change_that_is_none(world: World) -> None:
    world.upsert("echo", A, backends=[ONE])
    failed = acknowledge(world, A, 7)
    world.upsert("echo", A, backends=[ONE])
    assert world.frontend(A) == failed


def test_frontends_that_are_not_asked_for_any_more_go(world: World) -> None:
    world.upsert("echo", A, B)
    world.upsert("echo", B, C)
    assert world.frontends == {B: "echo", C: "echo"}
    world.delete("echo")
    assert (world.frontends, world.services) == ({}, [])
    world.delete("echo")


def test_frontends_are_written_in_address_order(world: World) -> None:
    with world.writer.write_txn() as wtxn:
        changes: ChangeIterator[Frontend] = world.tables.frontends.changes(wtxn)
    world.upsert("echo", C, A, B)
    seen, _ = changes.next(world.db.read_txn())
    assert [str(item.obj.address) for item in seen] == [A, B, C]
    changes.close()


def test_a_change_of_the_service_reaches_its_frontends(world: World) -> None:
    world.upsert("echo", A, backends=[ONE])
    acknowledge(world, A, 7)
    world.upsert("echo", A, affinity_timeout_s=42)
    assert world.frontend(A).service.affinity_timeout_s == 42
    assert world.frontend(A).status.kind is StatusKind.PENDING


# -- sources


def test_each_source_replaces_its_own_backends_only(world: World) -> None:
    world.upsert("echo", A, backends=[ONE])
    world.set_backends("echo", TWO, source=Source.API)
    assert world.backends_of(A) == [ONE, TWO]
    world.set_backends("echo")
    assert world.backends_of(A) == [TWO]
    world.set_backends("echo", source=Source.API)
    assert world.backends_of(A) == []


def test_the_preferred_source_of_an_address_is_shown(world: World) -> None:
    world.upsert("echo", A, backends=[ONE])
    world.set_backends("echo", ONE, source=Source.API, weight=7)
    assert [be.weight for be in world.frontend(A).backends] == [100]
    world.set_backends("echo")
    assert [be.weight for be in world.frontend(A).backends] == [7]


def test_each_cluster_replaces_its_own_backends_only(world: World) -> None:
    def remote(cluster_id: int, *rows: Backend) -> None:
        name = name_of("echo")
        source = Source.CLUSTERMESH
        world.apply(ServiceChange(name, backends=rows, source=source, cluster_id=cluster_id))

    def far(address: str, cluster_id: int) -> Backend:
        return backend("echo", address, source=Source.CLUSTERMESH, cluster_id=cluster_id)

    world.upsert("echo", A)
    remote(1, far(ONE, 1))
    remote(2, far(TWO, 2))
    assert world.backends_of(A) == [ONE, TWO]
    remote(1)
    assert world.backends_of(A) == [TWO]


# -- ownership


def test_the_first_owner_of_an_address_keeps_it(world: World) -> None:
    world.upsert("first", A, backends=[ONE])
    world.upsert("second", A, B, backends=[TWO])
    assert world.frontends == {A: "first", B: "second"}
    assert world.waiting == {"second": [f"{A} first"]}
    [problem] = world.problems
    assert problem == f"Service test/second: {A} is owned by test/first, which keeps it"
    assert [str(warning) for warning in world.warnings] == [problem]


def test_who_waits_takes_over_when_the_owner_goes(world: World) -> None:
    world.upsert("first", A)
    world.upsert("second", A, B, backends=[TWO])
    world.delete("first")
    assert world.frontends == {A: "second", B: "second"}
    assert world.backends_of(A) == [TWO]
    assert (world.waiting, world.problems) == ({}, [])


def test_who_waits_takes_over_when_the_owner_moves(world: World) -> None:
    world.upsert("first", A)
    world.upsert("second", A)
    world.upsert("first", B)
    assert world.frontends == {A: "second", B: "first"}


def test_who_waited_longest_comes_first_and_the_rest_learn_the_new_owner(world: World) -> None:
    for name in ("first", "zeta", "alpha"):
        world.upsert(name, A)
    world.upsert("zeta", A, affinity_timeout_s=1)  # Waits as long as before.
    world.delete("first")
    assert world.frontends == {A: "zeta"}
    assert world.waiting == {"alpha": [f"{A} zeta"]}
    assert world.problems == [f"Service test/alpha: {A} is owned by test/zeta, which keeps it"]


def test_services_that_exchange_addresses_pass_through_no_address_less_state(world: World) -> None:
    world.upsert("first", A)
    world.upsert("second", B)
    world.apply(change("first", B), change("second", A))
    assert world.frontends == {A: "second", B: "first"}
    assert (world.waiting, world.problems) == ({}, [])


def test_an_address_deleted_and_claimed_in_one_batch_changes_hands(world: World) -> None:
    world.upsert("first", A)
    world.apply(change("second", A), ServiceChange(name_of("first"), None))
    assert world.frontends == {A: "second"}


def test_a_cluster_ip_comes_before_what_anybody_may_write_into_an_object(world: World) -> None:
    world.apply(change("thief", A, B, type=FrontendType.EXTERNAL_IPS, created_at=1))
    world.apply(change("web", A, backends=[ONE], created_at=2))
    assert world.frontends == {A: "web", B: "thief"}
    assert world.backends_of(A) == [ONE]
    assert world.problems == [
        f"Service test/thief: {A} is owned by test/web, whose ClusterIP comes before an address of "
        "type ExternalIPs"
    ]
    world.delete("web")
    assert world.frontends == {A: "thief", B: "thief"}
    assert world.problems == []


@pytest.mark.parametrize("order", [*itertools.permutations(["newest", "middle", "oldest"])])
def test_the_owner_does_not_depend_on_the_order_of_reading(
    world: World, order: tuple[str, ...]
) -> None:
    born = {"oldest": 1, "middle": 5, "newest": 9}
    for name in order:
        world.apply(change(name, A, type=FrontendType.EXTERNAL_IPS, created_at=born[name]))
    assert world.frontends == {A: "oldest"}
    assert world.waiting == {"middle": [f"{A} oldest"], "newest": [f"{A} oldest"]}
    assert world.problems == [
        f"Service test/{name}: {A} is owned by test/oldest, which is older"
        for name in ("middle", "newest")
    ]
    world.delete("oldest")
    assert world.frontends == {A: "middle"}


def test_an_owner_that_asks_for_less_gives_way(world: World) -> None:
    world.upsert("first", A)
    world.apply(change("second", A, type=FrontendType.LOAD_BALANCER))
    world.apply(change("first", A, type=FrontendType.EXTERNAL_IPS))
    assert world.frontends == {A: "second"}
    assert world.waiting == {"first": [f"{A} second"]}


def test_of_files_and_an_api_server_the_latter_has_the_address(world: World) -> None:
    world.upsert("of-a-file", A)
    world.upsert("of-a-server", A, created_at=7)
    assert world.frontends == {A: "of-a-server"}
    assert world.problems == [
        f"Service test/of-a-file: {A} is owned by test/of-a-server, which has a creation timestamp"
    ]


def test_a_claim_goes_with_its_service(world: World) -> None:
    world.upsert("first", A)
    world.upsert("second", A)
    world.delete("second")
    assert (world.waiting, world.problems) == ({}, [])
    world.delete("first")
    assert world.frontends == {}


def test_what_waits_goes_over_to_the_source_that_is_preferred(world: World) -> None:
    world.upsert("first", A)
    file = msgspec.structs.replace(service("second"), source=Source.DIRECTORY)
    world.apply(ServiceChange(name_of("second"), file, [params(A)], source=Source.DIRECTORY))
    world.upsert("second", B)
    assert (world.frontends, world.waiting) == ({A: "first", B: "second"}, {})
    world.delete("second")
    assert world.waiting == {"second": [f"{A} first"]}


def test_an_aborted_transaction_leaves_no_trace(world: World) -> None:
    world.upsert("first", A)
    before = world.revisions()
    wtxn = world.writer.write_txn()
    world.writer.apply(wtxn, change("second", A))
    world.writer.apply(wtxn, ServiceChange(name_of("first"), None))
    wtxn.abort()
    assert (world.revisions(), world.waiting, world.frontends) == (before, {}, {A: "first"})
    world.delete("first")
    assert world.frontends == {}


# -- health, redirect, node


def set_health(world: World, address: str, *, healthy: bool) -> bool:
    with world.writer.write_txn() as wtxn:
        addr = L3n4Addr.parse(address)
        return world.writer.set_backend_health(wtxn, name_of("echo"), addr, healthy=healthy)


def test_health_is_kept_when_the_object_changes(world: World) -> None:
    world.upsert("echo", A, backends=[ONE, TWO])
    acknowledge(world, A, 7)
    assert set_health(world, ONE, healthy=False)
    assert world.frontend(A).status.kind is StatusKind.PENDING
    assert not set_health(world, ONE, healthy=False)
    assert not set_health(world, "10.1.0.9:80/TCP", healthy=False)
    world.set_backends("echo", ONE, TWO, weight=7)
    first, second = world.frontend(A).backends
    assert (first.unhealthy, first.weight, second.unhealthy) == (True, 7, False)
    assert set_health(world, ONE, healthy=True)
    assert not world.frontend(A).backends[0].unhealthy


def test_a_health_checked_service_uses_what_was_probed(world: World) -> None:
    world.writer.set_health_checked(lambda svc: "probe" in svc.annotations)
    world.upsert("echo", A, backends=[ONE, TWO], annotations={"probe": "yes"})
    assert world.backends_of(A) == []
    assert len(world.frontend(A).health_check_backends) == 2
    set_health(world, TWO, healthy=True)
    assert world.backends_of(A) == [TWO]


def test_a_redirected_frontend_shows_the_backends_of_the_other_service(world: World) -> None:
    def redirect(to: str | None) -> None:
        with world.writer.write_txn() as wtxn:
            target = name_of(to) if to else None
            world.writer.set_redirect(wtxn, L3n4Addr.parse(A), target)

    world.upsert("echo", A, backends=[ONE])
    world.set_backends("local", TWO)
    redirect("local")
    assert world.backends_of(A) == [TWO]
    world.set_backends("local", "10.1.0.3:80/TCP")
    assert world.backends_of(A) == ["10.1.0.3:80/TCP"]
    world.upsert("echo", A, backends=[ONE], affinity_timeout_s=1)
    assert (world.backends_of(A), world.frontend(A).redirect_to) == (
        ["10.1.0.3:80/TCP"],
        "test/local",
    )
    redirect(None)
    assert world.backends_of(A) == [ONE]


def test_a_change_of_the_node_is_followed() -> None:
    world = World(LoadBalancerOptions())
    near = backend("echo", ONE, for_zones=("a",))
    far = backend("echo", TWO, for_zones=("b",))
    svc = service("echo", traffic_distribution=TrafficDistribution.PREFER_SAME_ZONE)
    asked = msgspec.structs.replace(change("echo", A), service=svc, backends=[near, far])
    world.apply(asked)
    assert world.backends_of(A) == [ONE, TWO]
    world.writer.set_node(LocalNode("here", {ZONE_LABEL: "b"}))
    assert world.backends_of(A) == [TWO]


def test_tables_are_initialised_when_all_sources_have_listed(world: World) -> None:
    first = world.writer.register_initializer("first")
    second = world.writer.register_initializer("second")
    t = world.tables
    for complete, initialized in ((first, False), (second, True)):
        with world.writer.write_txn() as wtxn:
            complete(wtxn)
        txn = world.db.read_txn()
        assert [x.initialized(txn) for x in (t.services, t.frontends, t.backends)] == [
            initialized
        ] * 3


def defined_by(world: World, source: Source, *addresses: str) -> None:
    change_ = change("echo", *addresses)
    svc = msgspec.structs.replace(service("echo"), source=source)
    world.apply(msgspec.structs.replace(change_, service=svc, source=source))


def gone_from(world: World, source: Source) -> None:
    world.apply(ServiceChange(name_of("echo"), None, source=source))


@pytest.mark.parametrize("order", [(Source.K8S, Source.API), (Source.API, Source.K8S)])
def test_of_two_sources_the_preferred_one_is_served_whoever_came_first(
    world: World, order: tuple[Source, Source]
) -> None:
    addresses = {Source.K8S: A, Source.API: B}
    for source in order:
        defined_by(world, source, addresses[source])
    assert world.frontends == {A: "echo"}
    assert world.problems == ["Service test/echo: is defined by k8s too, which is preferred to api"]
    gone_from(world, Source.K8S)
    assert world.frontends == {B: "echo"}
    assert world.problems == []
    gone_from(world, Source.API)
    assert (world.frontends, world.services) == ({}, [])


def test_a_source_that_goes_while_it_waits_leaves_nothing(world: World) -> None:
    defined_by(world, Source.API, B)
    defined_by(world, Source.K8S, A)
    gone_from(world, Source.API)
    assert (world.frontends, world.problems) == ({A: "echo"}, [])
    gone_from(world, Source.K8S)
    assert (world.frontends, world.services) == ({}, [])


def test_a_heir_asks_for_its_addresses_like_all_others(world: World) -> None:
    defined_by(world, Source.API, B)
    defined_by(world, Source.K8S, A)
    world.upsert("other", B)
    gone_from(world, Source.K8S)
    assert world.frontends == {B: "other"}
    world.delete("other")
    assert world.frontends == {B: "echo"}

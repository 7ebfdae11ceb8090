# SPDX-License-Identifier: Apache-2.0
"""What comes into force at a start, and what waits, while inputs are on their way or unread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.redirects.controller import INITIALIZER as REDIRECT_POLICIES
from cilia.loadbalancer.services.reflector import initializer_of
from cilia.loadbalancer.unread_inputs import UnreadInputs
from reconcilers import Config
from reconcilers.loadbalancer.frontend_start import FrontendStart
from reconcilers.loadbalancer.frontends import PruneError
from statedb import Initializer, RWTable, StatusKind
from tables.addressing import IP, Prefix, ServiceName
from tables.cluster.k8s_watches import K8sWatch, new_k8s_watches_table
from tables.cluster.nodes import Node
from tables.loadbalancer.backends import BackendState
from tables.loadbalancer.frontends import Frontend
from tables.sources import Source
from tests.patience import PATIENCE
from tests.reconcilers.loadbalancer.lb_world import (
    ECHO,
    PLAIN,
    Kernel,
    LBWorld,
    backend,
    frontend,
    service,
)

SERVICES = initializer_of(Source.K8S)
OTHERS = initializer_of(Source.API)
OTHER = ServiceName("test/other")
OLD, VIP, NEW = "10.96.0.9:80/TCP", "10.96.0.1:80/TCP", "10.96.0.2:80/TCP"
FOREIGN = "10.99.0.1:80/TCP"
ONE, TWO = "10.244.1.1:80/TCP", "10.244.1.2:80/TCP"
THREE, FOUR = "10.244.1.3:80/TCP", "10.244.1.4:80/TCP"
#: A retry that nobody asks for comes too late for these tests.
SLOW = Config(retry_backoff_min_s=600.0, retry_backoff_max_s=600.0)


class StartWorld(LBWorld):
    """With initializers of the table, and the start under test."""

    def __init__(
        self,
        kernel: Kernel | None = None,
        config: LoadBalancerOptions = PLAIN,
        *initializers: str,
        beside_others: bool = False,
    ) -> None:
        super().__init__(config, kernel=kernel, reconciler_config=SLOW)
        self.watches = new_k8s_watches_table(self.db)
        self.done = {name: self._register(self.frontends, name) for name in initializers}
        self.nodes_read = self._register(self.nodes, "k8s")
        self.start = FrontendStart(
            self.reconciler,
            self.ops,
            self.frontends,
            (self.node_addresses, self.nodes),
            UnreadInputs(self.frontends, self.watches, self.nodes, "me"),
            beside_others=beside_others,
        )

    def _register(self, table: RWTable[Frontend] | RWTable[Node], name: str) -> Initializer:
        with self.db.write_txn(table) as wtxn:
            return table.register_initializer(wtxn, name)

    def read_nodes(self, *nodes: Node) -> None:
        with self.db.write_txn(self.nodes) as wtxn:
            for node in nodes:
                self.nodes.insert(wtxn, node)
            self.nodes_read(wtxn)

    def stall_nodes(self) -> None:
        with self.db.write_txn(self.nodes) as wtxn:
            self.nodes_read.stall(wtxn)

    def read(self, name: str) -> None:
        with self.db.write_txn(self.frontends) as wtxn:
            self.done[name](wtxn)

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5 * PATIENCE):
            while not condition():
                await anyio.sleep(0.001)

    def pending(self) -> tuple[str, ...]:
        return self.frontends.pending_initializers(self.db.read_txn())

    def is_done(self, address: str) -> bool:
        return self.frontend(address).status.kind is StatusKind.DONE

    def waits_for(self, address: str) -> str:
        status = self.frontend(address).status
        return status.error if status.kind is StatusKind.ERROR else ""

    async def waits(self, address: str, text: str) -> None:
        await self.until(lambda: text in self.waits_for(address))


async def lived(*rows: Frontend, config: LoadBalancerOptions = PLAIN) -> Kernel:
    """What an agent left behind that had these rows."""
    world = LBWorld(config)
    world.put(*rows)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.reconciler.run)
        await world.settled()
        tasks.cancel_scope.cancel()
    world.log.clear()
    return world.kernel


@asynccontextmanager
async def started(world: StartWorld) -> AsyncIterator[StartWorld]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.start.run)
        yield world
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("in_force", ["in the maps", "with another proxy"])
async def test_nothing_is_written_while_inputs_are_on_their_way(in_force: str) -> None:
    kernel = await lived(frontend(OLD, [ONE])) if in_force == "in the maps" else None
    world = StartWorld(kernel, beside_others=kernel is None)
    world.put(frontend(VIP, [ONE]))
    async with started(world):
        await anyio.sleep(0.02)
        assert world.log == []
        world.read_nodes()
        await world.until(lambda: world.is_done(VIP))
    assert world.log != []


async def test_nobody_waits_where_nothing_is_in_force() -> None:
    world = StartWorld()
    world.put(frontend(VIP))
    async with started(world):
        await world.until(lambda: world.is_done(VIP))


async def test_no_row_waits_when_all_inputs_are_read() -> None:
    """The first round has all rows, in their order."""
    world = StartWorld(await lived(frontend(OLD, [ONE])), PLAIN)
    world.put(frontend(VIP), frontend(NEW, [ONE]))
    world.read_nodes()
    async with started(world):
        await world.until(lambda: world.is_done(VIP) and world.is_done(NEW))
    assert (world.frontend(VIP).id, world.frontend(NEW).id) == (2, 3)


async def test_unread_inputs_hold_up_what_is_removed_and_nothing_else() -> None:
    """A file that nobody can read had OLD; the others add one frontend and change another."""
    kernel = await lived(frontend(OLD, [ONE]), frontend(VIP, [ONE]))
    world = StartWorld(kernel, PLAIN, SERVICES)
    world.put(frontend(VIP, [TWO]), frontend(NEW, [ONE]))
    async with started(world):
        world.stall_nodes()
        await world.waits(VIP, "in force beside 1 of its backends of before")
        await world.until(lambda: world.is_done(NEW))
        dump = world.dump()
        assert "10.96.0.9:80/TCP" in dump
        assert f"ADDR={TWO}" in dump
        world.read(SERVICES)
        await anyio.sleep(0.02)
        assert "10.96.0.9:80/TCP" in world.dump(), "Node objects are unread still"
        world.read_nodes()
        await world.until(lambda: "10.96.0.9:80/TCP" not in world.dump())
    assert "10.96.0.2:80/TCP" in world.dump()
    assert world.is_done(VIP)


def slots(world: StartWorld, address: str) -> tuple[int, set[str]]:
    """How many slots a frontend uses, and the backends behind all of them."""
    entries = [
        dict(field.split("=", 1) for field in line.split() if "=" in field) | {"": line[:3]}
        for line in world.dump().splitlines()
    ]
    addresses = {entry["ID"]: entry["ADDR"] for entry in entries if entry[""] == "BE:"}
    slots = [entry for entry in entries if entry[""] == "SVC" and entry["ADDR"] == address]
    used = next(int(entry["COUNT"]) for entry in slots if entry["SLOT"] == "0")
    return used, {addresses[entry["BEID"]] for entry in slots if entry["SLOT"] != "0"}


@pytest.mark.parametrize("unread", [SERVICES, initializer_of(Source.API)])
async def test_backends_of_before_stay_while_more_of_them_may_be_unread(unread: str) -> None:
    """A Service has slices in three files, one of which is broken, or in another source."""
    kernel = await lived(frontend(VIP, [ONE, TWO, THREE]))
    world = StartWorld(kernel, PLAIN, unread)
    world.put(frontend(VIP, [ONE, FOUR]))
    async with started(world):
        world.stall_nodes()
        await world.waits(VIP, "in force beside 2 of its backends of before")
        assert slots(world, VIP) == (4, {ONE, TWO, THREE, FOUR})
        txn = world.db.read_txn()
        expected = {at: value for at, value, _ in world.ops.expected(txn, world.frontends.all(txn))}
        assert expected.items() <= world.ops.actual().items(), "the verification agrees"
        world.put(frontend(VIP, [TWO, FOUR]))
        await world.waits(VIP, "in force beside 1 of its backends of before")
        assert slots(world, VIP) == (3, {TWO, THREE, FOUR}), "what was read and went is gone"
        world.read_nodes()
        world.read(unread)
        await world.until(lambda: world.is_done(VIP))
        assert slots(world, VIP) == (2, {TWO, FOUR})


@pytest.mark.parametrize("row", ["not ready", "of a pod", "of a policy"])
async def test_a_frontend_never_loses_its_last_backend_to_what_is_unread(row: str) -> None:
    """Backends of pods are of no slice: they are those of today."""
    rows = {
        "not ready": frontend(VIP, [backend(TWO, BackendState.MAINTENANCE)]),
        "of a pod": frontend(VIP, [TWO], FrontendType.HOST_PORT),
        "of a policy": frontend(VIP, [TWO], FrontendType.LOCAL_REDIRECT),
    }
    before = frontend(VIP, [ONE], rows[row].type)
    world = StartWorld(await lived(before), PLAIN, SERVICES)
    world.put(rows[row])
    async with started(world):
        world.stall_nodes()
        if row == "not ready":
            await world.waits(VIP, "in force beside 1")
            assert slots(world, VIP) == (1, {ONE})
        else:
            await world.until(lambda: world.is_done(VIP))
            assert slots(world, VIP) == (1, {TWO})


async def test_a_backend_stays_while_a_frontend_that_is_unread_leads_to_it() -> None:
    """Two Services have the same pods, and one of them is in a broken file."""
    world = StartWorld(await lived(frontend(OLD, [ONE, TWO])), PLAIN, SERVICES)
    world.put(frontend(VIP, [ONE, TWO]))
    async with started(world):
        world.stall_nodes()
        await world.until(lambda: world.is_done(VIP))
        world.put(frontend(VIP, [TWO, THREE]))
        await world.until(lambda: world.is_done(VIP))
        assert slots(world, OLD) == (2, {ONE, TWO})
        world.put(frontend(VIP, [FOUR]))
        await world.until(lambda: world.is_done(VIP))
        assert f"ADDR={THREE}" not in world.dump(), "nobody had it before"
        world.read_nodes()
        world.read(SERVICES)
        await world.until(lambda: OLD not in world.dump())
        await world.until(lambda: f"ADDR={ONE}" not in world.dump())
        assert f"ADDR={TWO}" not in world.dump()
        assert slots(world, VIP) == (1, {FOUR})


async def test_a_backend_that_stayed_goes_with_the_prune() -> None:
    """Also where no other entry is anybody's that is gone."""
    world = StartWorld(await lived(frontend(OLD, [ONE])), PLAIN, SERVICES)
    world.put(frontend(VIP, [ONE]))
    async with started(world):
        world.stall_nodes()
        await world.until(lambda: world.is_done(VIP))
        world.put(frontend(VIP, [TWO]))
        await world.until(lambda: world.is_done(VIP))
        assert f"ADDR={ONE}" in world.dump()
        world.put(frontend(OLD, [TWO]))
        world.read_nodes()
        world.read(SERVICES)
        await world.until(lambda: f"ADDR={ONE}" not in world.dump())
    assert slots(world, OLD) == (1, {TWO})


@pytest.mark.parametrize("kind", [FrontendType.EXTERNAL_IPS, FrontendType.LOAD_BALANCER])
async def test_an_address_in_force_does_not_go_to_another_type_of_frontend(
    kind: FrontendType,
) -> None:
    """Its Service may be in the file that nobody can read."""
    world = StartWorld(await lived(frontend(VIP, [ONE])), PLAIN, SERVICES)
    world.put(frontend(VIP, [TWO], kind), frontend(NEW, [TWO], kind))
    async with started(world):
        world.stall_nodes()
        await world.waits(VIP, "in force as another type's, whose Service may be unread")
        await world.until(lambda: world.is_done(NEW))
        assert slots(world, VIP) == (1, {ONE})
        world.put(frontend(VIP, [ONE]))
        await world.until(lambda: world.is_done(VIP))
        world.put(frontend(VIP, [TWO], kind))
        await world.until(lambda: world.is_done(VIP))
        assert TWO in slots(world, VIP)[1], "its Service was read, and gave it up"


@pytest.mark.parametrize("kind", [FrontendType.CLUSTER_IP, FrontendType.EXTERNAL_IPS])
async def test_an_address_in_force_does_not_go_to_another_service(kind: FrontendType) -> None:
    """Two files may say the same address, and the one that had it is broken now."""
    thief = service(OTHER)
    before = frontend(VIP, [ONE], kind)
    world = StartWorld(await lived(before), PLAIN, SERVICES)
    world.put(frontend(VIP, [TWO], kind, thief), frontend(NEW, [TWO], kind, thief))
    async with started(world):
        world.stall_nodes()
        await world.waits(VIP, "in force as another Service's, which may be unread")
        await world.until(lambda: world.is_done(NEW))
        assert slots(world, VIP) == (1, {ONE})
        world.read_nodes()
        world.read(SERVICES)
        await world.until(lambda: world.is_done(VIP))
        assert slots(world, VIP) == (1, {TWO})


async def test_an_address_of_the_api_server_goes_to_its_next_service() -> None:
    """Another source that is unread holds no ClusterIP back that another Service got since."""
    world = StartWorld(await lived(frontend(VIP, [ONE])), PLAIN, OTHERS)
    world.put(frontend(VIP, [TWO], svc=service(OTHER)))
    async with started(world):
        world.stall_nodes()
        await world.until(lambda: world.is_done(VIP))
        assert slots(world, VIP) == (1, {TWO}), "none of the Service that had it"


async def test_nothing_is_pruned_while_no_row_can_be_worked_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One object that nobody foresaw makes every round fail."""
    world = StartWorld(await lived(frontend(VIP, [ONE]), frontend(OLD, [TWO])), PLAIN, SERVICES)
    world.put(frontend(VIP, [ONE]))

    def refuse(node: Node) -> list[Prefix]:
        raise ValueError("negative shift count")

    with monkeypatch.context() as patched:
        # Of a module that is never compiled: what those have cannot be replaced.
        patched.setattr(Node, "pod_prefixes", property(refuse))
        async with started(world):
            world.read_nodes(Node("other"))
            world.read(SERVICES)
            await world.waits(VIP, "negative shift count")
            txn = world.db.read_txn()
            with pytest.raises(PruneError, match="1 frontends failed"):
                world.ops.prune(txn, world.frontends.all(txn))
            assert slots(world, VIP) == (1, {ONE})
            patched.undo()
            world.reconciler.retry_now()
            await world.until(lambda: world.is_done(VIP))
            world.reconciler.prune_now()
            await world.until(lambda: OLD not in world.dump())


async def test_a_row_that_goes_is_in_force_until_all_is_read() -> None:
    world = StartWorld(await lived(frontend(OLD, [ONE])), PLAIN, SERVICES)
    world.put(frontend(VIP, [ONE]))
    async with started(world):
        world.stall_nodes()
        await world.until(lambda: world.is_done(VIP))
        world.remove(VIP)
        await world.attempted()
        assert VIP in world.dump()
        world.read_nodes()
        await world.until(lambda: world.pending() == (SERVICES,))
        await anyio.sleep(0.02)  # whoever waits for nodes has looked
        assert VIP in world.dump()
        world.read(SERVICES)
        await world.until(lambda: VIP not in world.dump())


async def test_a_row_without_endpoints_waits_and_is_not_pruned() -> None:
    """It would refuse what still works."""
    kernel = await lived(frontend(VIP, [ONE]))
    world = StartWorld(kernel, PLAIN, SERVICES)
    world.put(frontend(VIP))
    async with started(world):
        world.stall_nodes()
        await world.waits(VIP, "no endpoint of it was read")
        assert world.log == []
        world.put(frontend(VIP, [ONE]))
        await world.until(lambda: world.is_done(VIP))
        world.put(frontend(VIP))
        await world.waits(VIP, "no endpoint of it was read")
        world.read_nodes()
        world.read(SERVICES)
        await world.until(lambda: world.is_done(VIP))
    assert "10.244.1.1" not in world.dump()


async def test_rows_that_waited_are_tried_before_the_prune() -> None:
    """The prune would take them for entries of nobody; there are more than fit into a round."""
    addresses = [f"10.96.{i // 250}.{i % 250 + 1}:80/TCP" for i in range(SLOW.round_size + 50)]
    kernel = await lived(*(frontend(address, [ONE]) for address in (FOREIGN, *addresses)))
    world = StartWorld(kernel, PLAIN, SERVICES)
    world.put(*(frontend(address) for address in addresses))
    async with started(world):
        world.stall_nodes()
        await world.waits(addresses[-1], "no endpoint")
        world.put(*(frontend(address, [ONE]) for address in addresses[-10:]))
        world.read_nodes()
        world.read(SERVICES)
        await world.until(lambda: all(map(world.is_done, addresses)))
        await world.until(lambda: FOREIGN not in world.dump())
    gone = [key for what, name, key in world.log if what == "delete" and name == "cilia_lb4_svc"]
    assert len(gone) == len(addresses) - 10 + 2, "a slot each; of FOREIGN, the master entry too"


async def test_no_prune_takes_a_row_that_waits_for_nobodys() -> None:
    world = StartWorld(await lived(frontend(VIP, [ONE])), PLAIN, SERVICES)
    world.put(frontend(VIP))
    async with started(world):
        world.stall_nodes()
        await world.waits(VIP, "no endpoint")
        txn = world.db.read_txn()
        with pytest.raises(PruneError, match="1 frontends wait"):
            world.ops.prune(txn, world.frontends.all(txn))


@pytest.mark.parametrize("kind", ["of a Service", "of a pod", "of a policy"])
async def test_services_wait_for_the_lists_of_the_api_server_and_others_do_not(kind: str) -> None:
    """The API server lets us list pods and no EndpointSlices."""
    rows = {
        "of a Service": frontend(VIP, [ONE]),
        "of a pod": frontend(VIP, [ONE], FrontendType.HOST_PORT),
        "of a policy": frontend(VIP, [ONE], FrontendType.LOCAL_REDIRECT),
    }
    world = StartWorld(await lived(frontend(OLD, [ONE])), PLAIN, SERVICES, "unread for ever")
    with world.db.write_txn(world.watches) as wtxn:
        world.watches.insert(wtxn, K8sWatch("endpointslices", "failed", error="403"))
    world.put(rows[kind])
    async with started(world):
        world.read_nodes()
        if kind == "of a Service":
            await world.waits(VIP, "lists of services and endpointslices are not complete")
            assert world.log == []
            world.read(SERVICES)
        await world.until(lambda: world.is_done(VIP))


async def test_a_row_that_an_unread_policy_may_redirect_waits() -> None:
    world = StartWorld(
        await lived(frontend(OLD, [ONE])), PLAIN, REDIRECT_POLICIES, "unread for ever"
    )
    redirected = frontend(NEW, [ONE], redirect_to=ECHO)
    world.put(frontend(VIP, [ONE]), redirected)
    async with started(world):
        world.read_nodes()
        await world.waits(VIP, "policy for it may be unread")
        await world.until(lambda: world.is_done(NEW))
        world.read(REDIRECT_POLICIES)
        await world.until(lambda: world.is_done(VIP))


async def test_a_row_for_some_nodes_waits_for_the_object_of_this_one() -> None:
    world = StartWorld(await lived(frontend(OLD, [ONE])))
    notes = {"service.cilium.io/node-selector": "role notin (edge)"}
    world.put(frontend(VIP, [ONE], svc=service(annotations=notes)))
    async with started(world):
        world.stall_nodes()
        await world.waits(VIP, "object of this node is not read")
        await anyio.sleep(0.02)  # nobody tries it again by himself
        with world.db.write_txn(world.nodes) as wtxn:
            world.nodes.insert(wtxn, Node("me"))  # there may be others
        await world.until(lambda: world.is_done(VIP))


async def test_an_address_gets_its_wildcard_entry_when_all_machines_are_known() -> None:
    """One that is in force stays; a new one could refuse what a node answers."""
    config = LoadBalancerOptions()
    kernel = await lived(frontend(VIP, [ONE]), config=config)
    assert "10.96.0.1:0/ANY" in LBWorld(config, kernel=kernel).dump()
    world = StartWorld(kernel, config, SERVICES)
    world.put(frontend(VIP, [ONE]), frontend(NEW, [ONE]), frontend(OLD, [ONE]))
    async with started(world):
        world.stall_nodes()
        await world.until(lambda: world.is_done(OLD))
        assert "10.96.0.1:0/ANY" in world.dump()
        assert "10.96.0.2:0/ANY" not in world.dump()
        machine = Node("other", internal_ips=(IP.parse("10.96.0.9"),))
        world.read(SERVICES)
        world.read_nodes(machine)
        await world.until(lambda: "10.96.0.2:0/ANY" in world.dump())
    assert "10.96.0.9:0/ANY" not in world.dump()
    removed = [key for what, _, key in world.log if what == "delete"]
    assert removed == []

# SPDX-License-Identifier: Apache-2.0
"""What expired is collected; UDP towards a backend that is gone does not wait for that."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from itertools import count
from types import SimpleNamespace

import anyio
import pytest

from bpf.maps import ct, nat
from bpf.maps.fake import FakeMap, FaultyMap
from bpf.maps.lb_numbers import FrontendType
from bpf.maps.raw import SharedMap
from cilia.datapath.conntrack import MAX_INTERVAL_S, ConntrackGC, ConntrackMaps, next_interval
from cilia.loadbalancer.connections.backend_audit import BackendAudit
from tests.reconcilers.loadbalancer.lb_world import LBWorld, frontend
from tests.reconcilers.targets import running

TCP, UDP = 6, 17
CLIENT, NODE = "192.0.2.9", "192.0.2.1"
VIP, A, B = "10.96.0.1", "10.244.1.1", "10.244.1.2"


def new_maps() -> ConntrackMaps:
    sizes = {4: 16, 6: 40}
    maps: dict[str, FakeMap] = {
        name: FakeMap(name, sizes[int(name[8])], ct.ENTRY_SIZE, 1024) for name in ct.CT_MAPS
    }
    for name in nat.NAT_MAPS:
        maps[name] = FakeMap(name, sizes[int(name[-1])], nat.VALUE_SIZE[name], 1024)
    return ConntrackMaps.of(maps)


def packed(text: str) -> bytes:
    return ip_address(text).packed


def connection(
    maps: ConntrackMaps,
    source: str,
    destination: str,
    *,
    direction: ct.Direction = ct.Direction.EGRESS,
    proto: int = UDP,
    expires_s: int = 100,
    backend_id: int = 0,
    rev_nat: int = 0,
    frontend: str = "",
) -> None:
    """`frontend`: the address that an entry towards a backend names."""
    key = ct.CtKey(packed(destination), packed(source), 53, 4000, proto, direction)
    kind = "tcp" if proto == TCP else "any"
    raw = maps.connections[f"cilia_ct{4 if len(key.source) == 4 else 6}_{kind}"]
    entry = ct.CtEntry(
        expires_s=expires_s,
        backend_id=backend_id,
        rev_nat=rev_nat,
        frontend_port=53 if frontend else 0,
        nat_address=packed(frontend).ljust(16, b"\0") if frontend else bytes(16),
    )
    raw.update(ct.encode_key(key), ct.encode_entry(entry))


def translation(
    maps: ConntrackMaps, backend: str, *, rev_nat: int, expires_s: int = 100, frontend: str = ""
) -> None:
    """Both entries of a flow of CLIENT to a backend through NODE."""
    raw = maps.translations["cilia_snat4"]
    out = nat.NatKey(packed(backend), packed(CLIENT), 53, 4000, UDP, nat.NatDirection.OUT)
    to_node = nat.NatValue(packed(NODE), 50000, expires_s=expires_s)
    to_client = nat.NatValue(
        packed(CLIENT),
        4000,
        expires_s=expires_s,
        rev_nat=rev_nat,
        frontend=packed(frontend) if frontend else b"",
        frontend_port=53 if frontend else 0,
    )
    raw.update(nat.encode_key(out), nat.encode_value(to_node))
    raw.update(nat.encode_key(nat.partner(out, to_node)), nat.encode_value(to_client))


def returned(maps: ConntrackMaps, backend: str, frontend: str, *, proto: int = UDP) -> None:
    """A flow of CLIENT to a backend of this node, which answers it in the frontend's name."""
    reply = nat.NatKey(packed(CLIENT), packed(backend), 4000, 53, proto, nat.NatDirection.OUT)
    value = nat.NatValue(packed(frontend), 53, int(nat.NatFlag.DSR), expires_s=100)
    maps.translations["cilia_snat4"].update(nat.encode_key(reply), nat.encode_value(value))


def left(maps: ConntrackMaps) -> list[str]:
    return sorted(str(key) for raw in maps.connections.values() for key, _ in ct.connections(raw))


def test_only_what_expired_is_deleted() -> None:
    maps = new_maps()
    connection(maps, CLIENT, A, expires_s=99)
    connection(maps, CLIENT, B, expires_s=100)
    connection(maps, "fd00::9", "fd00::1", proto=TCP, expires_s=1)
    translation(maps, A, rev_nat=1, expires_s=99)
    result = ConntrackGC(maps).sweep(now_s=100)
    assert left(maps) == [f"{CLIENT}:4000 -> {B}:53"]
    assert not dict(maps.translations["cilia_snat4"].items())
    assert result.deleted["cilia_ct4_any"] == 1
    assert result.alive["cilia_ct4_any"] == 1
    assert result.deleted["cilia_ct6_tcp"] == 1
    assert result.deleted["cilia_snat4"] == 2
    assert result.deleted_share == 1.0


def test_sweep_tells_what_it_deletes_before_it_looks() -> None:
    """Programs take nothing over that it deletes."""
    maps = new_maps()
    translation(maps, A, rev_nat=1, expires_s=99)
    swept = FakeMap(nat.SWEPT, 4, 4, 1)
    told: list[bytes | None] = []

    class Watched(FakeMap):
        def items(self) -> Iterator[tuple[bytes, bytes]]:
            told.append(swept.lookup(bytes(4)))
            return super().items()

    watched = Watched("cilia_snat4", 16, nat.VALUE_SIZE["cilia_snat4"], 1024)
    for key, value in maps.translations["cilia_snat4"].items():
        watched.update(key, value)
    result = ConntrackGC(ConntrackMaps({}, {"cilia_snat4": watched}, swept)).sweep(now_s=100)
    assert result.deleted == {"cilia_snat4": 2}
    assert told == [(100).to_bytes(4, "little")]


class Replaced(FakeMap):
    """What programs do between the look at the entries and their deletion."""

    def __init__(self, raw: FakeMap, do: Callable[[FakeMap], None]) -> None:
        super().__init__(raw.name, raw.key_size, raw.value_size, raw.max_entries)
        self._entries = raw._entries
        self._do = do

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        yield from super().items()
        self._do(self)


def replaced(maps: ConntrackMaps, do: Callable[[ConntrackMaps], None]) -> ConntrackMaps:
    """The same maps, in which programs do something once the entries were read."""

    def wrapped(raw: SharedMap) -> FakeMap:
        assert isinstance(raw, FakeMap)
        return Replaced(raw, lambda _: do(maps))

    return ConntrackMaps(
        {name: wrapped(raw) for name, raw in maps.connections.items()},
        {name: wrapped(raw) for name, raw in maps.translations.items()},
    )


def test_a_new_connection_on_the_ports_of_an_expired_one_keeps_its_backend() -> None:
    maps = new_maps()
    of_service = partial(connection, maps, CLIENT, VIP, direction=ct.Direction.SERVICE, proto=TCP)
    of_service(expires_s=99, backend_id=1)
    translation(maps, A, rev_nat=1, expires_s=99)

    def again(maps: ConntrackMaps) -> None:
        of_service(expires_s=8100, backend_id=2)
        translation(maps, A, rev_nat=2, expires_s=8100)

    result = ConntrackGC(replaced(maps, again)).sweep(now_s=100)
    assert left(maps) == [f"{CLIENT}:4000 -> {VIP}:53"]
    assert len(dict(maps.translations["cilia_snat4"].items())) == 2
    assert result.deleted["cilia_ct4_tcp"] == result.deleted["cilia_snat4"] == 0
    assert result.alive["cilia_ct4_tcp"] == 1


def test_random_sweeps_agree_with_a_filter() -> None:
    rng = random.Random(5)
    for _ in range(50):
        maps = new_maps()
        expiry = {f"10.0.{n // 250}.{n % 250}": rng.randrange(200) for n in range(100)}
        for source, at in expiry.items():
            connection(maps, source, A, proto=rng.choice((TCP, UDP)), expires_s=at)
        now = rng.randrange(200)
        ConntrackGC(maps).sweep(now_s=now)
        kept = sorted(f"{source}:4000 -> {A}:53" for source, at in expiry.items() if at >= now)
        assert left(maps) == kept


def test_wait_follows_what_was_found() -> None:
    assert next_interval(20, 0.9) == 10.0
    assert next_interval(100, 0.5) == 50.0
    assert next_interval(100, 0.1) == 100
    assert next_interval(100, 0.0) == 150.0
    assert next_interval(MAX_INTERVAL_S, 0.0) == MAX_INTERVAL_S


@pytest.mark.parametrize(("made", "expected_s"), [(0, 675.0), (10, 675.0), (500, 156.9)])
async def test_a_sweep_comes_before_what_is_made_fills_a_map(
    made: int, expected_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map has room for 1024; after 300 seconds it has `made` more."""
    maps, waits, now = new_maps(), list[float](), [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr("cilia.datapath.conntrack.time", clock)

    class Stopped(Exception):
        pass

    class Collector(ConntrackGC):
        async def _wait(self, wait_s: float, result: object) -> None:
            waits.append(wait_s)
            if len(waits) == 2:
                raise Stopped
            now[0] += 300
            for n in range(made):
                connection(maps, f"10.1.{n // 250}.{n % 250}", A, proto=TCP, expires_s=1000)

    collector = Collector(maps)
    connection(maps, CLIENT, A, proto=TCP, expires_s=1000)
    with pytest.raises(Stopped):
        await collector.run()
    assert waits == [450.0, pytest.approx(expected_s)]


async def test_sweeps_go_on_and_are_told() -> None:
    maps = new_maps()
    connection(maps, CLIENT, A, expires_s=0)
    told = anyio.Event()
    collector = ConntrackGC(maps, done=lambda result: told.set())
    async with anyio.create_task_group() as group:
        group.start_soon(collector.run)
        with anyio.fail_after(5):
            await told.wait()
        group.cancel_scope.cancel()
    assert left(maps) == []


async def lb_world(*backends: str) -> LBWorld:
    world = LBWorld()
    world.put(frontend(f"{VIP}:53/UDP", [f"{be}:53/UDP" for be in backends]))
    async with running(world.reconciler):
        await world.settled()
    return world


def audit(world: LBWorld, maps: ConntrackMaps) -> int:
    return BackendAudit(maps, world.maps, world.frontends).step(world.db.read_txn())


def rev_nat_of(world: LBWorld, address: str) -> int:
    line = next(line for line in world.dump().splitlines() if f"ADDR={address}" in line)
    return int(line.split("ID=")[1].split()[0])


async def test_entries_towards_a_removed_backend_go_and_others_stay() -> None:
    world = await lb_world(A)
    maps = new_maps()
    number = rev_nat_of(world, VIP)
    connection(maps, CLIENT, A, rev_nat=number)
    connection(maps, CLIENT, B, rev_nat=number)
    connection(maps, "192.0.2.10", B, proto=TCP, rev_nat=number)
    connection(maps, "192.0.2.11", B)  # dialled directly
    connection(maps, CLIENT, VIP, direction=ct.Direction.SERVICE, backend_id=1, rev_nat=number)
    connection(
        maps, "192.0.2.12", VIP, direction=ct.Direction.SERVICE, backend_id=77, rev_nat=number
    )
    translation(maps, B, rev_nat=number)
    assert audit(world, maps) == 3
    assert left(maps) == [
        f"192.0.2.10:4000 -> {B}:53",
        f"192.0.2.11:4000 -> {B}:53",
        f"192.0.2.12:4000 -> {VIP}:53",  # programs look for its backend by address
        f"{CLIENT}:4000 -> {A}:53",
        f"{CLIENT}:4000 -> {VIP}:53",
    ]
    assert not dict(maps.translations["cilia_snat4"].items())


@pytest.mark.parametrize("kind", [FrontendType.CLUSTER_IP, FrontendType.NODE_PORT])
async def test_a_backend_answers_in_no_name_that_has_become_anothers(kind: FrontendType) -> None:
    """By direct return: its replies take the frontend from an entry of its node."""
    is_node_port = kind is FrontendType.NODE_PORT
    asked, address = (NODE, "0.0.0.0:53/UDP") if is_node_port else (VIP, f"{VIP}:53/UDP")
    world, maps = LBWorld(), new_maps()
    returned(maps, A, asked)
    returned(maps, A, asked, proto=TCP)
    returned(maps, B, "198.51.100.1")
    async with running(world.reconciler):
        for backends, deleted in (([A, B], 0), ([], 0), ([B], 1)):
            world.put(frontend(address, [f"{be}:53/UDP" for be in backends], kind))
            await world.settled()
            assert audit(world, maps) == deleted
    assert maps.translations["cilia_snat4"].count() == 2, "TCP, and a frontend that is unknown"


async def test_a_flow_that_got_another_backend_while_it_was_audited_stays() -> None:
    world = await lb_world(A)
    maps = new_maps()
    number = rev_nat_of(world, VIP)
    of_service = partial(
        connection, maps, CLIENT, VIP, direction=ct.Direction.SERVICE, rev_nat=number
    )
    of_service(backend_id=2)
    world.put(frontend("10.96.0.2:53/UDP", [f"{B}:53/UDP"]))
    async with running(world.reconciler):
        await world.settled()
    translation(maps, B, rev_nat=number)

    others = count(number + 1)

    def again(maps: ConntrackMaps) -> None:
        of_service(backend_id=1)
        translation(maps, B, rev_nat=next(others))

    assert audit(world, replaced(maps, again)) == 0
    assert left(maps) == [f"{CLIENT}:4000 -> {VIP}:53"]
    assert len(dict(maps.translations["cilia_snat4"].items())) == 2


async def test_entries_go_when_no_backend_is_left() -> None:
    world = await lb_world(A)
    maps = new_maps()
    number = rev_nat_of(world, VIP)
    connection(maps, CLIENT, A, rev_nat=number)
    translation(maps, A, rev_nat=number)
    assert audit(world, maps) == 0
    world.put(frontend(f"{VIP}:53/UDP"))
    assert audit(world, maps) == 3
    assert left(maps) == []


async def gone(world: LBWorld) -> None:
    world.remove(f"{VIP}:53/UDP")
    async with running(world.reconciler):
        await world.settled()


async def served(world: LBWorld, *backends: str) -> None:
    world.put(frontend(f"{VIP}:53/UDP", [f"{be}:53/UDP" for be in backends]))
    async with running(world.reconciler):
        await world.settled()


def all_kinds(maps: ConntrackMaps, backend: str, number: int, *, backend_id: int) -> None:
    """What a flow through the frontend leaves, by all ways."""
    connection(maps, CLIENT, backend, rev_nat=number, frontend=VIP)
    of_service = partial(connection, maps, CLIENT, VIP, direction=ct.Direction.SERVICE)
    of_service(backend_id=backend_id, rev_nat=number)
    translation(maps, backend, rev_nat=number, frontend=VIP)


def entries(maps: ConntrackMaps) -> int:
    raws = (*maps.connections.values(), *maps.translations.values())
    return sum(len(dict(raw.items())) for raw in raws)


async def test_entries_of_a_frontend_stay_until_its_backends_are_known_again() -> None:
    world = await lb_world(A, B)
    maps = new_maps()
    all_kinds(maps, A, rev_nat_of(world, VIP), backend_id=1)
    await gone(world)
    assert audit(world, maps) == 0, "it may be made anew"
    await served(world)
    assert audit(world, maps) == 0, "its backends may come"
    await served(world, A, B)
    assert audit(world, maps) == 0
    assert entries(maps) == 4
    await gone(world)
    await served(world, B)
    assert audit(world, maps) == 3, "all that lead to the backend"
    assert left(maps) == [f"{CLIENT}:4000 -> {VIP}:53"]


async def test_former_number_that_another_frontend_has_tells_nothing() -> None:
    world = await lb_world(A)
    maps = new_maps()
    number = rev_nat_of(world, VIP)
    for backend in (A, B):
        connection(maps, CLIENT, backend, rev_nat=number, frontend="10.96.0.2")
    assert audit(world, maps) == 0, "the frontend that they name is gone, and may be made anew"
    world.put(frontend("10.96.0.2:53/UDP", [f"{B}:53/UDP"]))
    async with running(world.reconciler):
        await world.settled()
    assert audit(world, maps) == 1
    assert left(maps) == [f"{CLIENT}:4000 -> {B}:53"]


async def test_a_node_port_of_another_node_is_found_by_its_surrogate() -> None:
    world = LBWorld()
    world.put(frontend("0.0.0.0:53/UDP", [f"{A}:53/UDP"], FrontendType.NODE_PORT))
    async with running(world.reconciler):
        await world.settled()
    maps = new_maps()
    number = rev_nat_of(world, "0.0.0.0:53")
    for backend in (A, B):
        connection(maps, CLIENT, backend, rev_nat=number, frontend="192.0.2.2")
    assert audit(world, maps) == 1
    assert left(maps) == [f"{CLIENT}:4000 -> {A}:53"]


async def test_a_node_port_is_found_by_its_surrogate() -> None:
    world = LBWorld()
    world.set_nodes(NODE)
    world.put(frontend("0.0.0.0:53/UDP", [f"{A}:53/UDP"], FrontendType.NODE_PORT))
    async with running(world.reconciler):
        await world.settled()
    maps = new_maps()
    number = rev_nat_of(world, f"{NODE}:53")
    connection(maps, CLIENT, A, rev_nat=number)
    connection(maps, CLIENT, B, rev_nat=number)
    assert audit(world, maps) == 1
    assert left(maps) == [f"{CLIENT}:4000 -> {A}:53"]


async def test_a_change_that_is_in_the_kernel_is_audited() -> None:
    world = LBWorld()
    world.put(frontend(f"{VIP}:53/UDP", [f"{A}:53/UDP", f"{B}:53/UDP"]))
    maps = new_maps()
    watcher = BackendAudit(maps, world.maps, world.frontends)
    async with running(world.reconciler), anyio.create_task_group() as group:
        await world.settled()
        connection(maps, CLIENT, B, rev_nat=rev_nat_of(world, VIP))
        group.start_soon(watcher.run, world.db, world.reconciler)
        world.put(frontend(f"{VIP}:53/UDP", [f"{A}:53/UDP"]))
        with anyio.fail_after(5):
            while left(maps):
                await anyio.sleep(0.005)
        group.cancel_scope.cancel()


async def test_nothing_goes_before_all_inputs_are_known() -> None:
    world = LBWorld()
    with world.db.write_txn(world.frontends) as wtxn:
        done = world.frontends.register_initializer(wtxn, "listing")
    maps = new_maps()
    connection(maps, CLIENT, B, rev_nat=1)  # of an earlier version: its number is all it tells
    watcher = BackendAudit(maps, world.maps, world.frontends)
    async with running(world.reconciler), anyio.create_task_group() as group:
        group.start_soon(watcher.run, world.db, world.reconciler)
        await anyio.wait_all_tasks_blocked()
        assert left(maps)
        with world.db.write_txn(world.frontends) as wtxn:
            done(wtxn)
        with anyio.fail_after(5):
            while left(maps):
                await anyio.sleep(0.005)
        group.cancel_scope.cancel()


def test_a_sweep_that_fails_is_told() -> None:
    maps = new_maps()
    connection(maps, CLIENT, A, expires_s=0)
    faulty = ConntrackMaps(
        {name: FaultyMap(raw, 1.0, random.Random(1)) for name, raw in maps.connections.items()},
        {},
    )
    with pytest.raises(Exception, match="delete from cilia_ct4_any"):
        ConntrackGC(faulty).sweep(now_s=10)

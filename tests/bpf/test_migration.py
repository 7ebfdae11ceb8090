# SPDX-License-Identifier: Apache-2.0
"""Maps of another layout or size: filled beside their predecessors, switched to, renamed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from bpf import compile as bpf_compile
from bpf.datapath import NodeDatapath, cleanup
from bpf.errors import RequirementMissing
from bpf.maps import lb
from bpf.maps.cluster_nodes import NAMES as NODE_MAPS
from bpf.maps.map import Map
from bpf.maps.types import MapFlag, MapType
from bpf.sock import NUMBERED_MAPS, SOCKET_MAPS, SockConfig
from reconcilers.datapath.attachment_places import Attached
from reconcilers.datapath.cgroup_places import CgroupPlaces
from tests.bpf.attaching import AttachingDatapath
from tests.bpf.sources import build_changed
from tests.bpf.test_sock import (
    SVC_ONE,
    TCP,
    UDP,
    Datapath,
    echo_once,
    outcome,
    packed,
    tcp_server,
    udp_server,
)
from tests.bpf.test_sock_takeover import (
    PROGRAMS,
    attached,
    kill_at,
    killed_in,
    map_ids,
    map_names,
    start,
)
from tests.bpf.world import World

pytestmark = pytest.mark.root


@pytest.fixture
def config(world: World) -> Iterator[SockConfig]:
    config = SockConfig(world.bpffs / "node", world.cgroup, 1024, 1024)
    yield config
    cleanup(config.pin_dir)


def pin_names(config: SockConfig) -> list[str]:
    return sorted(path.name for path in (config.pin_dir / "maps").iterdir())


def put_other_layout(config: SockConfig) -> Path:
    """Replace the pinned service map by one as an older build would have left it."""
    path = config.pin_dir / "maps" / "cilia_lb4_svc"
    with Map.create(MapType.HASH, "cilia_lb4_svc", 8, 16, 1024, flags=MapFlag.NO_PREALLOC) as other:
        other.replace_pin(path)
    return path


def test_first_start_is_no_migration(config: SockConfig) -> None:
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    assert sorted(sock.fresh) == sorted(map_names(config))
    assert not sock.migrating
    sock.close()


@pytest.fixture
def others_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs in force are this build's, and stand for others that use the pins as they are
    made here: the maps that they use in truth would be put back.
    """
    monkeypatch.setattr(NodeDatapath, "_maps_in_use", lambda _: set())


@pytest.mark.usefixtures("others_in_force")
def test_other_layout_is_made_beside_and_renamed_after_the_switch(config: SockConfig) -> None:
    start(config).close()
    path = put_other_layout(config)
    with Map.open_pinned(path) as old:
        old_id = old.info.id
    sock = AttachingDatapath(config)
    maps = sock.open_maps()
    assert sock.migrating
    assert set(sock.fresh) == NUMBERED_MAPS, "they name each other"
    maps.v4.service.update(lb.encode_service_key(b"\1\2\3\4", 80), bytes(28))
    sock.load()
    sock.attach()
    assert Map.open_pinned(path).info.id == old_id
    assert sock.retire() == []
    sock.close()
    with Map.open_pinned(path) as new:
        assert (new.key_size, new.value_size) == (12, 28)
        assert [key for key, _ in new.items()] == [lb.encode_service_key(b"\1\2\3\4", 80)]
    assert pin_names(config) == sorted(map_names(config))
    maps.close()


def test_other_size_is_a_migration_that_keeps_what_programs_wrote(config: SockConfig) -> None:
    start(config).close()
    socket_path = config.pin_dir / "maps" / "cilia_lb4_sk"
    key = lb.encode_socket_key(lb.SocketKey(7, b"\1\2\3\4", 80))
    with Map.open_pinned(socket_path) as opened:
        opened.update(key, bytes(range(12)))
    larger = config._replace(socket_entries=4096)
    sock = AttachingDatapath(larger)
    sock.open_maps().close()
    assert sorted(sock.fresh) == sorted(SOCKET_MAPS)
    sock.load()
    sock.attach()
    sock.retire()
    sock.close()
    with Map.open_pinned(socket_path) as opened:
        assert opened.max_entries == 4096
        assert opened.lookup(key) == bytes(range(12))


def test_a_size_that_cannot_hold_what_is_in_force_is_refused(config: SockConfig) -> None:
    start(config).close()
    path = config.pin_dir / "maps" / "cilia_lb4_svc"
    with Map.open_pinned(path) as opened:
        for port in range(40):
            opened.update(lb.encode_service_key(b"\1\2\3\4", port + 1), bytes(28))
    sock = AttachingDatapath(config._replace(service_entries=39))
    with pytest.raises(RequirementMissing, match=r"cilia_lb4_svc holds 40 entries .* ask for 40"):
        sock.open_maps()
    sock.close()
    assert pin_names(config) == sorted(map_names(config)), "nothing was made"
    fitting = AttachingDatapath(config._replace(service_entries=40))
    fitting.open_maps().close()
    fitting.close()


def test_new_program_never_runs_without_the_ways_back(
    config: SockConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are copied before the first hook is switched, not only after the last."""
    start(config).close()
    key = lb.encode_socket_key(lb.SocketKey(7, b"\1\2\3\4", 80))
    with Map.open_pinned(config.pin_dir / "maps" / "cilia_lb4_sk") as opened:
        opened.update(key, bytes(12))
    sock = AttachingDatapath(config._replace(socket_entries=4096))
    maps = sock.open_maps()
    sock.load()
    seen: list[bool] = []

    def attach(*_: object) -> Attached:
        seen.append(maps.v4.socket.lookup(key) is not None)
        return Attached(0, 0)

    monkeypatch.setattr(CgroupPlaces, "attach", attach)
    sock.attach()
    assert seen == [True] * len(PROGRAMS)
    sock.close()
    maps.close()


def test_client_keeps_its_replies_through_a_migration_and_back(
    world: World, config: SockConfig
) -> None:
    def client() -> list[object]:
        first = AttachingDatapath(config)
        maps = first.open_maps()
        first.load()
        first.attach()
        first.retire()
        server, port = udp_server("127.0.0.1")
        Datapath(world, first, maps).service(SVC_ONE, 53, UDP, [("127.0.0.1", port)])
        peers: list[object] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect((SVC_ONE, 53))
            for changed in (config, config._replace(socket_entries=4096), config):
                start(changed).close()
                sock.send(b"x")
                echo_once(server)
                peers.append(sock.recvfrom(10)[1])
        return peers

    assert world.in_child(client) == [(SVC_ONE, 53)] * 3
    assert pin_names(config) == sorted(map_names(config))


def other_build() -> bytes:
    """The object of a build whose service entries are 4 bytes longer."""
    first = "struct lb_service {\n"
    return build_changed("sock", "lb_types.h", first, first + "\t__u32 extra;\n")


def take_over(config: SockConfig, elf: bytes, extra: bytes, port: int) -> None:
    """A whole start of a build: open, fill, load, attach, retire."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpf_compile, "load_object", lambda name, cache_dir: elf)
        sock = AttachingDatapath(config)
        maps = sock.open_maps()
        backend = lb.BackendValue(packed("127.0.0.1"), port, TCP)
        maps.v4.backend.update(lb.encode_id(1), lb.encode_backend(backend))
        for slot, value in (
            (1, lb.ServiceValue(backend_id=1)),
            (0, lb.ServiceValue(rev_nat=1, count=1)),
        ):
            key = lb.encode_service_key(packed(SVC_ONE), 80, slot, TCP)
            maps.v4.service.update(key, extra + lb.encode_service(value))
        sock.load()
        sock.attach()
        sock.retire()
        sock.close()
        maps.close()


def test_another_build_takes_over_under_traffic_and_back(world: World, config: SockConfig) -> None:
    builds = {28: (bpf_compile.load_object("sock"), b""), 32: (other_build(), bytes(4))}
    path = config.pin_dir / "maps" / "cilia_lb4_svc"

    def node() -> tuple[list[int], int, list[str]]:
        server, port = tcp_server("127.0.0.1")
        take_over(config, *builds[28], port)
        sizes: list[int] = []
        with connecting(server) as outcomes:
            for size in (32, 28, 32, 28):
                take_over(config, *builds[size], port)
                grown(outcomes, by=5)
                with Map.open_pinned(path) as opened:
                    sizes.append(opened.value_size)
        return sizes, outcomes.count("ok"), [o for o in outcomes if o != "ok"]

    sizes, connections, failures = world.in_child(node)
    assert sizes == [32, 28, 32, 28]
    assert failures == []
    assert connections >= 20
    assert attached(config) == len(PROGRAMS)
    assert pin_names(config) == sorted(map_names(config))


def grown(outcomes: list[str], by: int) -> None:
    """Wait until so many connections more were tried, however slow the machine is."""
    wanted, deadline = len(outcomes) + by, time.monotonic() + 10
    while len(outcomes) < wanted:
        assert time.monotonic() < deadline, outcomes
        time.sleep(0.001)


@contextmanager
def connecting(server: socket.socket) -> Iterator[list[str]]:
    """Connect to the service in a thread, one connection after the other, while the block runs."""
    outcomes: list[str] = []
    stop = threading.Event()

    def connect() -> None:
        while not stop.is_set():
            with socket.socket() as sock:
                sock.settimeout(2)
                outcomes.append(outcome(partial(sock.connect, (SVC_ONE, 80))))
                if outcomes[-1] == "ok":
                    server.accept()[0].close()

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        thread.join()


#: Maps whose size no option of sockets changes.
SINGLE = {"cilia_metrics", "cilia_switch", "cilia_lb_counted", "cilia_lb_load", *NODE_MAPS}

#: How a start on other sizes can be interrupted: (owner, function, nth call).
STEPS: list[tuple[object, str, int]] = [
    (Map, "replace_pin", 1),
    (Map, "replace_pin", 8),
    (AttachingDatapath, "load", 1),
    (CgroupPlaces, "attach", 1),
    (CgroupPlaces, "attach", 5),
    (CgroupPlaces, "attach", 8),
]


@pytest.mark.parametrize("then", ["same build", "other build"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "name", "nth"), STEPS, ids=lambda v: getattr(v, "__name__", v))
def test_killed_migration_ends_as_a_clean_start_of_either_build(
    config: SockConfig, owner: object, name: str, nth: int, when: str, then: str
) -> None:
    start(config).close()
    larger = config._replace(service_entries=2048, socket_entries=2048)
    killed_in(larger, lambda: kill_at(owner, name, nth, when))
    last, size = (larger, 2048) if then == "same build" else (config, 1024)
    start(last).close()
    assert attached(config) == len(PROGRAMS)
    assert pin_names(config) == sorted(map_names(config))
    for path in (config.pin_dir / "maps").iterdir():
        with Map.open_pinned(path) as opened:
            assert opened.max_entries == size or path.name in SINGLE


def test_map_that_was_perhaps_not_in_use_counts_as_fresh(config: SockConfig) -> None:
    """After a killed upgrade the older build must not trust the maps that it left."""
    start(config).close()
    ids = map_ids(config)
    larger = config._replace(service_entries=2048)
    killed_in(larger, lambda: kill_at(CgroupPlaces, "attach", 8, "after"))
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    assert sorted(sock.fresh) == sorted(set(map_names(config)) - SOCKET_MAPS)
    assert sock.migrating
    assert {name: ids[name] for name in ids} == {
        name: opened.info.id for name, opened in sock._loader.maps.items()
    }
    sock.close()


def test_pins_that_nobody_wants_go_after_the_switch(config: SockConfig) -> None:
    start(config).close()
    with Map.create(MapType.HASH, "cilia_lb4_old", 4, 4, 10) as old:
        old.pin(config.pin_dir / "maps" / "cilia_lb4_old")
        old.pin(config.pin_dir / "maps" / "cilia_lb4_svc~next")
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    sock.load()
    sock.attach()
    assert sock.retire() == ["cilia_lb4_old", "cilia_lb4_svc~next"]
    sock.close()
    assert pin_names(config) == sorted(map_names(config))


@pytest.mark.usefixtures("others_in_force")
def test_new_map_is_a_successor_even_if_its_name_is_free(config: SockConfig) -> None:
    """Or a start that is killed before it filled the map would leave one that seems complete."""
    start(config).close()
    (config.pin_dir / "maps" / "cilia_lb4_be").unlink()
    for _ in range(2):
        sock = AttachingDatapath(config)
        sock.open_maps().close()
        assert "cilia_lb4_be" in sock.fresh
        assert sock.migrating
        assert "cilia_lb4_be~next" in pin_names(config)
        assert "cilia_lb4_be" not in pin_names(config)
        sock.close()
    start(config).close()
    assert pin_names(config) == sorted(map_names(config))


def test_no_map_is_trusted_while_another_build_has_not_settled(config: SockConfig) -> None:
    """It may have been in force with maps of other names, and have left these as they were."""
    start(config).close()
    with Map.create(MapType.HASH, "cilia_lb4_other", 4, 4, 10) as other:
        other.pin(config.pin_dir / "maps" / "cilia_lb4_oth~next")
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    assert sock.migrating
    assert set(map_names(config)) - set(sock.fresh) == SOCKET_MAPS
    sock.load()
    sock.attach()
    assert sock.retire() == ["cilia_lb4_oth~next"]
    assert sock.fresh == []
    sock.close()

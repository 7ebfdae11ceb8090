# SPDX-License-Identifier: Apache-2.0
"""Restart, kill and upgrade of the socket translation: what is in force stays until its successor
is.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpf import compile as bpf_compile
from bpf import pins
from bpf.datapath import NodeDatapath, cleanup
from bpf.errors import KernelError, LoadError, RequirementMissing, kernel_error
from bpf.link import Link, cgroup_id
from bpf.maps import map as bpf_map
from bpf.maps.cluster_nodes import NAMES as NODE_MAPS
from bpf.maps.lb import LBMaps
from bpf.maps.map import Map
from bpf.object import Object
from bpf.program import Program
from bpf.sock import SERVICE_MAPS, SockConfig
from tests.bpf.attaching import AttachingDatapath
from tests.bpf.sources import build
from tests.bpf.test_sock import SVC_ONE, TCP, Datapath, peer_of, tcp_server
from tests.bpf.world import World, fork_and_run, open_descriptors, wait_until

pytestmark = pytest.mark.root

PROGRAMS = [
    *(
        f"{hook}{family}"
        for hook in ("connect", "getpeername", "post_bind", "recvmsg", "sendmsg")
        for family in (4, 6)
    ),
    "sock_release",
]


#: As ``not_in_force`` names them.
PROGRAMS_IN_SOURCE = [
    *(
        f"{hook}{family}"
        for family in (4, 6)
        for hook in ("connect", "sendmsg", "recvmsg", "getpeername")
    ),
    "post_bind4",
    "post_bind6",
    "sock_release",
]


@pytest.fixture
def config(world: World) -> Iterator[SockConfig]:
    config = SockConfig(world.bpffs / "node", world.cgroup, 1024, 1024)
    yield config
    cleanup(config.pin_dir)


def start(config: SockConfig) -> AttachingDatapath:
    """A whole start; the caller closes."""
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    sock.load()
    sock.attach()
    sock.retire()
    return sock


def in_force(config: SockConfig) -> dict[str, int]:
    """Pinned link -> id of the program that it runs."""
    found = {}
    for path in (config.pin_dir / "links").iterdir():
        with Link.open_pinned(path) as link:
            found[path.name] = link.info().program_id
    return found


def test_start_pins_maps_and_links_and_nothing_else(config: SockConfig) -> None:
    start(config).close()
    assert sorted(in_force(config)) == PROGRAMS
    assert sorted(path.name for path in config.pin_dir.iterdir()) == [
        "attachments",
        "links",
        "maps",
        "programs",
    ]
    assert sorted(path.name for path in (config.pin_dir / "maps").iterdir()) == sorted(
        SERVICE_MAPS
        | {"cilia_metrics", "cilia_switch", "cilia_lb_load", "cilia_lb_counted", *NODE_MAPS}
    )


def test_second_start_keeps_links_and_maps_and_swaps_programs(config: SockConfig) -> None:
    start(config).close()
    programs, links, maps = in_force(config), link_ids(config), map_ids(config)
    second = start(config)
    second.close()
    assert second.fresh == []
    assert link_ids(config) == links
    assert map_ids(config) == maps
    assert not set(in_force(config).values()) & set(programs.values())


def link_ids(config: SockConfig) -> dict[str, int]:
    found = {}
    for path in (config.pin_dir / "links").iterdir():
        with Link.open_pinned(path) as link:
            found[path.name] = link.info().id
    return found


def map_ids(config: SockConfig) -> dict[str, int]:
    found = {}
    for path in (config.pin_dir / "maps").iterdir():
        with Map.open_pinned(path) as opened:
            found[path.name] = opened.info.id
    return found


def test_old_programs_are_freed_after_the_swap(config: SockConfig) -> None:
    start(config).close()
    old = set(in_force(config).values())
    start(config).close()
    wait_until(lambda: not any(program_exists(number) for number in old), "old programs are gone")


def program_exists(number: int) -> bool:
    from bpf.errors import NotFound

    try:
        Program.by_id(number).close()
    except NotFound:
        return False
    return True


def test_connections_work_while_the_owner_is_dead(world: World, config: SockConfig) -> None:
    """The process that attached is killed with -9; its programs and maps answer all the same."""

    def client() -> tuple[str, int]:
        server, port = tcp_server("127.0.0.1")
        killed_in(config)
        sock = AttachingDatapath(config)
        maps = sock.open_maps()
        Datapath(world, sock, maps).service(SVC_ONE, 80, TCP, [("127.0.0.1", port)])
        sock.close()
        maps.close()
        with server, socket.create_connection((SVC_ONE, 80), timeout=3) as connection:
            return peer_of(connection)

    assert world.in_child(client) == (SVC_ONE, 80)


def killed_in(config: SockConfig, arm: Callable[[], object] | None = None) -> None:
    """Start in a child that dies by SIGKILL where ``arm`` says, else at the end."""
    pid = os.fork()
    if pid == 0:
        if arm is not None:
            arm()
        sock = AttachingDatapath(config)
        sock.open_maps()
        sock.load()
        sock.attach()
        if arm is not None:
            os._exit(1)  # it came through
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


#: Every function through which a start changes something outside the process, and how often it
#: does.
STEPS = [
    *((bpf_map, "pin", n) for n in (1, 2, 8)),
    *((pins, "pin", n) for n in (1, 2, 8, 12, 20)),
    *((pins, "replace", n) for n in (1, 2, 8, 12, 20)),
    (Object, "load", 1),
    (Object, "load", 2),
    *((Link, "create", n) for n in (1, 5)),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "name", "nth"), STEPS, ids=lambda v: getattr(v, "__name__", v))
def test_start_after_a_kill_ends_as_a_clean_start(
    world: World, owner: object, name: str, nth: int, when: str
) -> None:
    config = SockConfig(world.bpffs / "node", world.cgroup, 64, 64)
    killed_in(config, lambda: kill_at(owner, name, nth, when))
    sock = start(config)
    sock.close()
    assert sorted(in_force(config)) == PROGRAMS
    assert attached(config) == len(PROGRAMS)
    assert sorted(map_ids(config)) == sorted(map_names(config))
    cleanup(config.pin_dir)


def kill_at(owner: object, name: str, nth: int, when: str) -> None:
    """Make the nth call of ``owner.name`` in this process its last."""
    real = getattr(owner, name)
    calls = 0

    def step(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, step)


def attached(config: SockConfig) -> int:
    """How many links the kernel holds on our cgroup, pinned or not."""
    from bpf.link import LinkType, all_links

    target = cgroup_id(config.cgroup)
    return sum(1 for info in all_links() if (info.type, info.target) == (LinkType.CGROUP, target))


def map_names(config: SockConfig) -> list[str]:
    with Object.open("sock", bpf_compile.load_object("sock")) as obj:
        return [definition.name for definition in obj.map_definitions()]


@pytest.mark.parametrize("nth", [1, 4, 8])
@pytest.mark.parametrize("when", ["before", "after"])
def test_kill_during_the_swap_leaves_every_hook_attached_once(
    world: World, config: SockConfig, nth: int, when: str
) -> None:
    start(config).close()
    killed_in(config, lambda: kill_at(Link, "update", nth, when))
    assert attached(config) == len(PROGRAMS)
    start(config).close()
    assert attached(config) == len(PROGRAMS)
    assert sorted(in_force(config)) == PROGRAMS


BROKEN = """
const volatile _Bool have_set_retval = 0;
const volatile __u64 host_netns_cookie = 0;
const volatile _Bool sock_host_only = 0, wildcard_entries = 0;
const volatile __s32 no_backend_error = 0;
SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx)
{
    return *(volatile int *)(long)ctx->user_ip4;
}
"""


def test_new_program_that_does_not_verify_leaves_the_old_one_in_force(
    config: SockConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(config).close()
    before = in_force(config)
    sock = AttachingDatapath(config)
    maps = sock.open_maps()
    sock._loader._elves = {"sock": build(BROKEN)}
    sock._loader.maps = {}
    with pytest.raises(LoadError, match="invalid mem access"):
        sock.load()
    sock.close()
    maps.close()
    assert in_force(config) == before
    assert attached(config) == len(PROGRAMS)


def test_links_follow_when_the_cgroup_was_made_anew(world: World, config: SockConfig) -> None:
    start(config).close()
    world.cgroup.rmdir()
    world.cgroup.mkdir()
    start(config).close()
    assert attached(config) == len(PROGRAMS)
    assert sorted(in_force(config)) == PROGRAMS


@pytest.mark.parametrize("errno_name", ["ENOMEM", "EPERM", "EBUSY"])
def test_attach_that_fails_in_the_middle_is_repeated(
    config: SockConfig, monkeypatch: pytest.MonkeyPatch, errno_name: str
) -> None:
    start(config).close()
    old = in_force(config)
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    sock.load()
    real, calls = Link.update, 0

    def update(link: Link, program: Program) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise kernel_error("update link", getattr(errno, errno_name))
        real(link, program)

    monkeypatch.setattr(Link, "update", update)
    with pytest.raises(KernelError, match="update link"):
        sock.attach()
    assert attached(config) == len(PROGRAMS)
    assert len(set(in_force(config).values()) & set(old.values())) == len(PROGRAMS) - 3
    with pytest.raises(RuntimeError, match="before the links were updated"):
        sock.retire()
    sock.attach()
    assert sock.not_in_force() == []
    assert sock.retire() == []
    assert not set(in_force(config).values()) & set(old.values())
    sock.close()


def test_retire_before_load_takes_nothing_away(config: SockConfig) -> None:
    start(config).close()
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    with pytest.raises(RuntimeError, match="before publish"):
        sock.retire()
    assert sorted(in_force(config)) == PROGRAMS
    sock.close()


def test_removed_pin_detaches_nothing_and_is_put_back(config: SockConfig) -> None:
    sock = start(config)
    ids = link_ids(config)
    assert sock.not_in_force() == []
    (config.pin_dir / "links" / "connect4").unlink()
    assert attached(config) == len(PROGRAMS)
    assert sock.not_in_force() == ["connect4"]
    sock.attach()
    assert sock.not_in_force() == []
    assert link_ids(config) == ids
    sock.close()


def test_retire_takes_nothing_away_that_a_repair_needs(config: SockConfig) -> None:
    sock = AttachingDatapath(config)
    sock.open_maps().close()
    sock.load()
    sock.attach()
    with Link.open_pinned(config.pin_dir / "links" / "connect6") as link:
        link.detach()
    assert sock.retire() == []
    assert sock.not_in_force() == ["connect6"]
    sock.attach()
    assert sock.not_in_force() == []
    assert attached(config) == len(PROGRAMS)
    sock.close()


def test_link_detached_by_hand_is_made_anew(config: SockConfig) -> None:
    sock = start(config)
    with Link.open_pinned(config.pin_dir / "links" / "sendmsg6") as link:
        link.detach()
    assert attached(config) == len(PROGRAMS) - 1
    assert sock.not_in_force() == ["sendmsg6"]
    sock.attach()
    assert sock.not_in_force() == []
    assert attached(config) == len(PROGRAMS)
    sock.close()


def test_program_swapped_by_hand_is_swapped_back(config: SockConfig) -> None:
    first = start(config)
    second = start(config)
    assert second.not_in_force() == []
    assert first.not_in_force() == PROGRAMS_IN_SOURCE
    first.attach()
    assert first.not_in_force() == []
    first.close()
    second.close()


def test_no_connection_fails_while_owners_die_and_return(world: World, config: SockConfig) -> None:
    """Ten owners one after the other, each killed with -9 at another moment of its start."""

    def client() -> tuple[int, list[str]]:
        server, port = tcp_server("127.0.0.1")
        sock = start(config)
        maps = LBMaps.open_pinned(config.pin_dir / "maps")
        Datapath(world, sock, maps).service(SVC_ONE, 80, TCP, [("127.0.0.1", port)])
        sock.close()
        stop = threading.Event()
        failures: list[str] = []
        connections = 0

        def connect() -> None:
            nonlocal connections
            while not stop.is_set():
                try:
                    with socket.create_connection((SVC_ONE, 80), timeout=2) as connection:
                        assert peer_of(connection) == (SVC_ONE, 80)
                    connections += 1
                except (OSError, AssertionError) as error:
                    failures.append(repr(error))
                server.accept()[0].close()

        thread = threading.Thread(target=connect)
        thread.start()
        for number in range(10):
            owner = os.fork()
            if owner == 0:
                start(config)
                signal.pause()
            time.sleep(number * 0.004)
            os.kill(owner, signal.SIGKILL)
            os.waitpid(owner, 0)
        stop.set()
        thread.join()
        return connections, failures

    connections, failures = world.in_child(client)
    assert failures == []
    assert connections > 10
    start(config).close()
    assert attached(config) == len(PROGRAMS)


def test_cleanup_removes_everything_even_while_the_owner_lives(
    world: World, config: SockConfig
) -> None:
    sock = start(config)
    cleanup(config.pin_dir)
    assert attached(config) == 0
    assert not config.pin_dir.exists()
    sock.close()
    cleanup(config.pin_dir)


def test_starts_and_stops_leave_no_descriptor(config: SockConfig) -> None:
    start(config).close()
    gc.collect()
    before = open_descriptors()
    for _ in range(5):
        start(config).close()
    assert open_descriptors() == before


def test_machine_without_privilege_is_told_so(config: SockConfig) -> None:
    def unprivileged() -> str:
        os.setgid(65534)
        os.setuid(65534)
        try:
            NodeDatapath.check_requirements(config)
        except RequirementMissing as error:
            return str(error)
        return "nothing missing"

    assert fork_and_run(unprivileged).startswith("no privilege to use BPF: run as root")


def test_wrong_places_are_named(config: SockConfig, tmp_path: Path) -> None:
    NodeDatapath.check_requirements(config)
    with pytest.raises(RequirementMissing, match="is not a cgroup2 directory"):
        NodeDatapath.check_requirements(config._replace(cgroup=tmp_path))
    with pytest.raises(RequirementMissing, match="is not on a bpffs"):
        NodeDatapath.check_requirements(config._replace(pin_dir=tmp_path / "somewhere" / "else"))


def test_kernel_without_btf_is_told_so(
    config: SockConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bpf import features

    monkeypatch.setattr(features, "KERNEL_BTF", tmp_path / "nothing")
    with pytest.raises(RequirementMissing, match="CONFIG_DEBUG_INFO_BTF"):
        NodeDatapath.check_requirements(config)


def test_kernel_without_helpers_is_told_that_it_is_too_old(
    config: SockConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bpf import features

    monkeypatch.setattr(features, "has_helper", lambda program_type, helper: False)
    with pytest.raises(RequirementMissing, match=r"is too old.*use Linux 6.1 or newer"):
        NodeDatapath.check_requirements(config)

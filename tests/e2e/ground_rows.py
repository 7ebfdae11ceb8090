# SPDX-License-Identifier: Apache-2.0
"""What may be done to what an agent stands on; `ground.py` says how a row is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bpf import pins
from bpf.descriptors import Fd
from bpf.link import Link
from cilia.linux.mounts import mount
from tests.bpf.world import unmount
from tests.e2e import ground
from tests.e2e.ground import Ground, Row, Undo

Where = Callable[[Ground], Path]

DIRECTORIES: dict[str, Where] = {
    "state directory": lambda g: g.world.state_dir,
    "copies of manifests": lambda g: g.world.state_dir / "manifests",
    "directory of pins": lambda g: g.pin_dir,
    "pins of maps": lambda g: g.pin_dir / "maps",
    "pins of programs": lambda g: g.pin_dir / "programs",
    "links on the cgroup": lambda g: g.pin_dir / "links",
    "links on devices": lambda g: g.pin_dir / "attachments",
}
PINNED = list(DIRECTORIES)[2:]
FILES: dict[str, Where] = {
    "control socket": lambda g: g.world.state_dir / "cilia.sock",
    "record of mounts": lambda g: g.world.state_dir / "mounts.json",
    "record of pins": lambda g: g.world.state_dir / "pins.json",
    "mark of copies": lambda g: g.world.state_dir / "manifests" / "complete",
    "a copy": lambda g: next((g.world.state_dir / "manifests").glob("*.json")),
}


def rows(pinned: list[str]) -> Iterator[Row]:
    """All rows; `pinned` are the pins of an agent at rest, each of which is a thing."""
    for thing, where in DIRECTORIES.items():
        yield Row(thing, "removed", _of(ground.remove, where))
        yield Row(thing, "emptied", _of(ground.empty, where))
        yield Row(thing, "renamed", _of(ground.rename, where))
        hidden = "in no BPF file system" if thing in PINNED else ""
        yield Row(thing, "mounted over", _of(ground.shadow, where), hidden, refused=bool(hidden))
    for thing, where in FILES.items():
        yield Row(thing, "removed", _of(ground.remove, where))
        yield Row(thing, "renamed", _of(ground.rename, where))
        if thing != "control socket":
            yield Row(thing, "emptied", _of(ground.empty, where))
    yield from _bpffs()
    yield from _manifests()
    yield from _devices()
    yield from _links()
    yield from _replaced_pins()
    yield Row("cgroup", "made anew", _cgroup_anew, traffic=False)
    for pin in pinned:
        yield Row(f"pin {pin}", "removed", _of(ground.remove, _below(pin)))


def few() -> list[Row]:
    """Rows for every run of the tests: one of each kind of mechanism."""
    wanted = {
        "state directory, removed",
        "BPF file system, unmounted",
        "links on devices, removed",
        "manifests, renamed",
    }
    return [row for row in rows([]) if row.name in wanted]


def _of(deed: Callable[[Path], Undo], where: Where) -> Callable[[Ground], Undo]:
    return lambda g: deed(where(g))


def _below(pin: str) -> Where:
    return lambda g: g.pin_dir / pin


def _bpffs() -> Iterator[Row]:
    def lazily(g: Ground) -> Undo:
        unmount(g.world.bpf_root)
        return ground.nothing

    def another(g: Ground) -> Undo:
        mount("bpf", g.world.bpf_root)
        return lambda: unmount(g.world.bpf_root)

    yield Row("BPF file system", "unmounted", lazily)
    yield Row("BPF file system", "mounted over", _of(ground.shadow, lambda g: g.world.bpf_root))
    yield Row("BPF file system", "another over it", another)


def _manifests() -> Iterator[Row]:
    def here(g: Ground) -> Path:
        return g.world.manifests

    def a_file(g: Ground) -> Path:
        return g.world.manifests / "echo.yaml"

    def broken(path: Path) -> Undo:
        text = path.read_text()
        path.write_text("{")
        return lambda: path.write_text(text)

    def a_file_in_place(path: Path) -> Undo:
        undo = ground.rename_and_back(path)
        path.write_text("")

        def back() -> None:
            path.unlink()
            undo()

        return back

    def directory_in_place(path: Path) -> Undo:
        undo = ground.rename_and_back(path)
        path.mkdir()

        def back() -> None:
            path.rmdir()
            undo()

        return back

    gone = "cannot be read"
    yield Row("manifests", "renamed", _of(ground.rename_and_back, here), gone, refused=True)
    yield Row("manifests", "replaced by a file", _of(a_file_in_place, here), gone, refused=True)
    yield Row("a manifest", "broken", _of(broken, a_file), "echo.yaml")
    yield Row(
        "a manifest",
        "replaced by a directory",
        _of(directory_in_place, a_file),
        "not a regular file",
    )


def _devices() -> Iterator[Row]:
    def deleted(g: Ground) -> Undo:
        g.node.ip("link del dev0")
        return lambda: ground.plug(g.node, g.client)

    def anew(g: Ground) -> Undo:
        g.node.ip("link del dev0")
        ground.plug(g.node, g.client)
        return ground.nothing

    def down(g: Ground) -> Undo:
        g.node.ip("link set dev0 down")
        return lambda: g.node.ip("link set dev0 up")

    def without_address(g: Ground) -> Undo:
        g.node.ip("addr flush dev dev0")
        return lambda: g.node.ip(f"addr add {ground.NODE}/24 dev dev0")

    def renamed(g: Ground) -> Undo:
        g.node.ip("link set dev0 name other0")
        return lambda: g.node.ip("link set other0 name dev0")

    yield Row("device", "removed", deleted, "there is no device dev0", traffic=False)
    yield Row("device", "made anew", anew, traffic=False)
    yield Row("device", "down", down, "dev0: device is down", traffic=False)
    yield Row("device", "without address", without_address, "has no addresses", traffic=False)
    yield Row("device", "renamed", renamed, "there is no device dev0", traffic=False)


def _links() -> Iterator[Row]:
    def detached(g: Ground, below: str) -> Undo:
        for path in (g.pin_dir / below).iterdir():
            with Link.open_pinned(path) as link:
                link.detach()
        return ground.nothing

    for thing, below in (("links on the cgroup", "links"), ("links on devices", "attachments")):
        yield Row(thing, "detached", partial(detached, below=below), traffic=False)


def _replaced_pins() -> Iterator[Row]:
    """Under its name is another object of the same kind."""

    def replaced(g: Ground, name: str, other: str) -> Undo:
        with Fd(pins.open_pin(g.pin_dir / other)) as opened:
            pins.replace(opened.number, g.pin_dir / name)
        return ground.nothing

    for name, other in (
        ("maps/cilia_lb4_svc", "maps/cilia_lb4_be"),
        ("maps/cilia_ct4_tcp", "maps/cilia_snat4"),
        ("programs/connect4", "programs/sendmsg4"),
        ("programs/from_netdev", "programs/to_netdev"),
        ("maps/cilia_lb4_rev", "programs/connect4"),
        ("programs/connect6", "maps/cilia_lb4_rev"),
        ("links/connect4", "links/sendmsg4"),
        ("links/connect4", "maps/cilia_lb4_rev"),
    ):
        row = partial(replaced, name=name, other=other)
        yield Row(f"pin {name}", f"replaced by {other}", row)


def _cgroup_anew(g: Ground) -> Undo:
    """As a service manager does when it starts a slice again."""
    group = g.world.cgroup
    processes = (group / "cgroup.procs").read_text().split()
    for pid in processes:
        (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()
    group.mkdir()
    for pid in processes:
        (group / "cgroup.procs").write_text(pid)
    return ground.nothing

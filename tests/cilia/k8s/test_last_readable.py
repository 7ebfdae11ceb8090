# SPDX-License-Identifier: Apache-2.0
"""What is in force from a file that is broken when an agent starts."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import cilia.k8s.crds  # noqa: F401 - makes its kinds known
from cilia.k8s.directory_files import EMPTY, NOTHING_KNOWN, UNKNOWN
from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifest_files import decode_file
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.objects import EndpointSlice, Service
from cilia.k8s.state_file import state_file_source
from cilia.linux.mounts import mount
from tests.bpf.world import unmount
from tests.cilia.fuzz import forms
from tests.cilia.k8s.forms import service_form, slice_form, with_metadata, yaml_of
from tests.cilia.k8s.test_manifests import Reader
from tests.cilia.k8s.test_state_file import state

pytestmark = pytest.mark.usefixtures("short_grace")

BROKEN: dict[str, bytes] = {
    "no YAML": b"{",
    "wrong field": yaml_of(service_form("second", "10.96.0.2", type="None")),
    "empty document": b"---\nkind: Service\n",
}


#: Its copy does not fit where that of a small one was.
LARGE = yaml_of(
    with_metadata(service_form("first", "10.96.0.9"), annotations={"note": "x" * 20_000})
)


class Agents:
    """One source after the other on the same directories, as agents that are killed and started."""

    def __init__(self, directory: Path) -> None:
        self.manifests, self.copies = directory / "manifests", directory / "state" / "copies"
        self.manifests.mkdir()
        self.file = self.manifests / "a.yaml"
        self._tasks: list[asyncio.Task[None]] = []

    def write(self, *objects: str, ip: str = "10.96.0.1") -> None:
        self.write_bytes(yaml_of(*(service_form(name, ip) for name in objects)))

    def write_bytes(self, content: bytes, name: str = "a.yaml") -> None:
        """As an editor does, and at rest already."""
        new = self.manifests / ".new"
        new.write_bytes(content)
        os.utime(new, (1, 1))
        new.rename(self.manifests / name)

    def source(self, *, after_restart: bool = True) -> ManifestSource:
        return ManifestSource(
            self.manifests, copies=LastReadable(self.copies, after_restart=after_restart)
        )

    async def start(self, source: ManifestSource | None = None) -> Reader:
        """End the agent that runs, and start one that has what the other left."""
        await self.end()
        source = source or self.source()
        self.services = Reader(source.watch(Service, EndpointSlice))
        self.problems = Reader(source.watch())
        self._tasks = [
            asyncio.create_task(source.run()),
            self.services.task,
            self.problems.task,
        ]
        return self.services

    async def listed(self) -> Reader:
        reader = await self.start()
        await reader.until(lambda: reader.listed)
        return reader

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def replace_directory(self) -> None:
        """Put an empty directory in the place of the manifests'."""
        self.manifests.rename(self.manifests.with_name("other"))
        self.manifests.mkdir()

    async def complains(self, text: str) -> None:
        await self.problems.until(lambda: any(text in c for c in self.problems.complaints))

    def ip(self, name: str) -> str:
        (found,) = [o for o in self.services.objects.values() if o.metadata.name == name]
        assert isinstance(found, Service)
        return found.spec.cluster_ip


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    (tmp_path / "state").mkdir()
    made = Agents(tmp_path)
    yield made
    await made.end()


@pytest.mark.parametrize("how", BROKEN)
async def test_what_a_broken_file_had_is_in_force_after_a_restart(agents: Agents, how: str) -> None:
    agents.write_bytes(yaml_of(service_form("first"), service_form("second", "10.96.0.2")))
    agents.write_bytes(yaml_of(service_form("third", "10.96.0.3")), "b.yaml")
    await agents.listed()
    agents.write_bytes(BROKEN[how])
    reader = await agents.listed()
    expected = {"no YAML": ["first"], "wrong field": [], "empty document": ["first"]}[how]
    assert reader.names == sorted([*expected, "second", "third"])
    agents.file.unlink()
    await reader.until(lambda: reader.names == ["third"])
    await agents.listed()
    assert len(list(agents.copies.glob("*.json"))) == 1


@pytest.mark.parametrize("when", ["running", "down"])
async def test_an_empty_directory_in_the_place_of_another_removes_nothing_at_a_start(
    agents: Agents, when: str
) -> None:
    """A file system that is not mounted leaves one."""
    agents.write("first")
    agents.write_bytes(yaml_of(service_form("second", "10.96.0.2")), "b.yaml")
    reader = await agents.listed()
    if when == "down":
        await agents.end()
    agents.replace_directory()
    if when == "running":
        await agents.complains(EMPTY)
    for _ in range(2):  # no start forgets it
        reader = await agents.listed()
        assert reader.names == ["first", "second"]
        await agents.complains(EMPTY)
    agents.write_bytes(yaml_of(service_form("third", "10.96.0.3")), "c.yaml")
    await reader.until(lambda: reader.names == ["third"])
    assert (await agents.listed()).names == ["third"]


async def test_a_directory_that_is_made_anew_is_another_one(agents: Agents) -> None:
    """Often it gets the inode that the old one had."""
    agents.write("first")
    await agents.listed()
    await agents.end()
    before = agents.manifests.stat().st_ino
    for _ in range(50):
        shutil.rmtree(agents.manifests)
        agents.manifests.mkdir()
        if agents.manifests.stat().st_ino == before:
            break
    assert (await agents.listed()).names == ["first"]
    await agents.complains(EMPTY)


async def test_an_object_that_only_an_earlier_version_took_harms_no_other(agents: Agents) -> None:
    """Its copy and its file are refused; all others are known."""
    agents.write_bytes(yaml_of(service_form("first"), service_form("third", "10.96.0.3")))
    agents.write_bytes(yaml_of(service_form("second", "10.96.0.2")), "b.yaml")
    await agents.listed()
    await agents.end()
    for path in [agents.file, *agents.copies.glob("*.json")]:
        path.write_bytes(path.read_bytes().replace(b"10.96.0.3", b"10.96.0.333"))
        os.utime(path, (1, 1))
    reader = await agents.listed()
    assert reader.names == ["first", "second"]
    await agents.complains("'10.96.0.333' is not an IP address")


@pytest.mark.parametrize("lost", ["all", "one"])
async def test_nothing_is_complete_beside_an_empty_directory_and_lost_copies(
    agents: Agents, lost: str
) -> None:
    agents.write("first")
    agents.write_bytes(yaml_of(service_form("second", "10.96.0.2")), "b.yaml")
    await agents.listed()
    await agents.end()
    agents.replace_directory()
    for path in [*agents.copies.glob("*.json")][: None if lost == "all" else 1]:
        path.unlink()
    (agents.copies / "complete").unlink()
    reader = await agents.start()
    await agents.complains(NOTHING_KNOWN)
    assert not reader.listed
    assert len(reader.names) == (0 if lost == "all" else 1)
    agents.write_bytes(b"apiVersion: v1\nkind: List\nitems: []\n")
    await reader.until(lambda: reader.listed)
    await reader.until(lambda: not reader.names)


async def test_files_that_are_removed_while_no_agent_runs_are_gone(agents: Agents) -> None:
    agents.write("first")
    await agents.listed()
    await agents.end()
    agents.file.unlink()
    assert (await agents.listed()).names == []


async def test_nothing_is_complete_beside_an_empty_directory_and_a_broken_copy(
    agents: Agents,
) -> None:
    agents.write("first")
    agents.write_bytes(yaml_of(service_form("second", "10.96.0.2")), "b.yaml")
    await agents.listed()
    await agents.end()
    agents.replace_directory()
    next(agents.copies.glob("*.json")).write_bytes(b"{")
    reader = await agents.start()
    await agents.complains(EMPTY)
    assert len(reader.names) == 1
    assert not reader.listed
    agents.write("third")
    await reader.until(lambda: reader.listed)
    await reader.until(lambda: reader.names == ["third"])


async def test_files_of_others_beside_the_copies_stay(agents: Agents) -> None:
    agents.write("first")
    agents.copies.mkdir()
    others = [agents.copies / name for name in ("a.yaml", "a.json", "first-0.json")]
    for path in others:
        path.write_bytes(yaml_of(service_form("other", "10.96.0.7")))
    await agents.listed()
    agents.write_bytes(b"", "b.yaml")
    reader = await agents.listed()
    assert reader.names == ["first"]
    assert all(path.exists() for path in others)


async def test_files_are_in_force_when_no_copy_can_be_kept(tmp_path: Path, agents: Agents) -> None:
    agents.write("first")
    agents.write_bytes(b"{", "b.yaml")
    (tmp_path / "state").rmdir()
    (tmp_path / "state").write_bytes(b"no directory")
    reader = await agents.start(agents.source(after_restart=False))
    await reader.until(lambda: reader.listed)
    assert reader.names == ["first"]
    await agents.complains("cannot be kept")


async def test_a_half_broken_file_is_not_taken_back_to_what_it_was_when_whole(
    agents: Agents,
) -> None:
    """`first` was changed while `second` was broken; then nothing of the file can be read."""
    agents.write("first", "second")
    reader = await agents.listed()
    half = [service_form("first", "10.96.0.9"), service_form("second", type="None")]
    agents.write_bytes(yaml_of(*half))
    await reader.until(lambda: agents.ip("first") == "10.96.0.9")
    await agents.end()
    agents.write_bytes(b"{")
    reader = await agents.listed()
    assert (agents.ip("first"), agents.ip("second")) == ("10.96.0.9", "10.96.0.1")


async def test_a_file_that_went_is_not_served_when_it_comes_back_broken(agents: Agents) -> None:
    agents.write("first")
    reader = await agents.listed()
    agents.file.unlink()
    await reader.until(lambda: reader.names == [])
    await agents.end()
    agents.write_bytes(b"{")
    reader = await agents.listed()
    assert reader.names == []


async def test_a_broken_file_of_which_nothing_is_known_counts_as_unread(agents: Agents) -> None:
    """Somebody removed the state directory while no agent ran."""
    agents.write_bytes(b"{")
    agents.write_bytes(yaml_of(service_form("other", "10.96.0.3")), "b.yaml")
    reader = await agents.start()
    await reader.until(lambda: reader.names == ["other"])
    await agents.problems.until(lambda: UNKNOWN in agents.problems.complaints)
    await reader.quiet()
    assert not reader.listed, "or all that the file had would be removed from the kernel"
    agents.write("first")
    await reader.until(lambda: reader.listed)
    assert reader.names == ["first", "other"]
    agents.write_bytes(b"{")
    reader = await agents.listed()
    assert reader.names == ["first", "other"]


async def test_it_is_read_when_it_is_removed(agents: Agents) -> None:
    agents.write_bytes(b"{")
    reader = await agents.start()
    await agents.problems.until(lambda: UNKNOWN in agents.problems.complaints)
    agents.file.unlink()
    await reader.until(lambda: reader.listed)


async def test_a_file_that_was_never_readable_holds_up_no_later_start(agents: Agents) -> None:
    agents.write_bytes(b"{")
    agents.write_bytes(yaml_of(service_form("other", "10.96.0.3")), "b.yaml")
    reader = await agents.start(agents.source(after_restart=False))
    await reader.until(lambda: reader.listed)
    await agents.listed()
    await agents.end()
    agents.write_bytes(b"[", "new.yaml")
    await agents.listed()


async def test_a_broken_copy_counts_as_none(agents: Agents) -> None:
    agents.write("first")
    await agents.listed()
    await agents.end()
    (copy,) = agents.copies.glob("*.json")
    copy.write_bytes(copy.read_bytes()[:-5])
    agents.write_bytes(b"{")
    reader = await agents.start()
    await agents.problems.until(lambda: UNKNOWN in agents.problems.complaints)
    assert not reader.listed


@pytest.fixture
def full(agents: Agents) -> Iterator[Path]:
    """A small disk for the copies."""

    mount("tmpfs", agents.copies.parent)
    libc = ctypes.CDLL(None)
    place = os.fsencode(agents.copies.parent)
    assert libc.mount(b"none", place, b"tmpfs", 32, b"size=64k") == 0  # MS_REMOUNT
    yield agents.copies.parent / "fill"
    unmount(agents.copies.parent)


def fill(path: Path) -> None:
    """Leave no room on the file system."""
    with pytest.raises(OSError, match="space"):
        path.write_bytes(bytes(1 << 20))


@pytest.mark.root
async def test_an_old_copy_is_never_served_after_the_disk_was_full(
    agents: Agents, full: Path
) -> None:
    agents.write("first")
    reader = await agents.listed()
    fill(full)
    agents.write_bytes(LARGE)
    await reader.until(lambda: agents.ip("first") == "10.96.0.9")
    await agents.complains("No space left")
    await agents.end()
    agents.write_bytes(b"{")
    reader = await agents.start()
    await agents.problems.until(lambda: UNKNOWN in agents.problems.complaints)
    await reader.quiet()
    assert (reader.names, reader.listed) == ([], False)


@pytest.mark.root
async def test_the_room_of_the_old_copy_is_used_for_the_new_one(agents: Agents, full: Path) -> None:
    agents.write("first")
    reader = await agents.listed()
    fill(full)
    agents.write("first", ip="10.96.0.9")
    await reader.until(lambda: agents.ip("first") == "10.96.0.9")
    await agents.end()
    agents.write_bytes(b"{")
    await agents.listed()
    assert agents.ip("first") == "10.96.0.9"


@pytest.mark.root
async def test_copies_are_kept_again_when_there_is_room(
    agents: Agents, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cilia.k8s.manifests.KEEP_AGAIN_S", 0.05)
    agents.write("first")
    reader = await agents.listed()
    fill(full)
    agents.write_bytes(LARGE)
    await agents.complains("No space left")
    full.unlink()
    await agents.problems.until(lambda: not agents.problems.complaints)
    await agents.end()
    agents.write_bytes(b"{")
    reader = await agents.listed()
    assert (reader.names, agents.ip("first")) == (["first"], "10.96.0.9")


@pytest.mark.parametrize("how", ["broken", "away"])
async def test_a_state_file_stays_in_force_over_a_restart(agents: Agents, how: str) -> None:
    path = agents.file

    def source() -> ManifestSource:
        return state_file_source(path, 0.02, LastReadable(agents.copies, after_restart=True))

    path.write_text(state(service_form("a"), endpoints=(slice_form("s"),)))
    reader = await agents.start(source())
    await reader.until(lambda: reader.listed)
    await agents.end()
    path.write_text("{") if how == "broken" else path.unlink()
    reader = await agents.start(source())
    await reader.until(lambda: reader.listed)
    assert reader.names == ["a", "s"]


@pytest.mark.parametrize("seed", range(20))
def test_a_copy_has_every_field_of_its_objects(tmp_path: Path, seed: int) -> None:
    kinds = (forms.service, forms.endpoint_slice, forms.pod, forms.node, forms.namespace)
    made = [make(random.Random(seed)) for make in (*kinds, forms.policy)]
    content = decode_file("x.yaml", yaml_of(*made))
    assert (len(content.objects), content.problems) == (len(made), ())
    copies = LastReadable(tmp_path / "copies")
    copies.keep("x.yaml", content.objects)
    assert copies.last("x.yaml") == content.objects

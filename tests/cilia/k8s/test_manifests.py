# SPDX-License-Identifier: Apache-2.0
"""The directory: real files, real inotify."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from cilia.k8s import directory_files, manifests
from cilia.k8s.directory_files import EMPTY, GRACE_S, SETTLE_S, Restless, read_at_rest
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.objects import EndpointSlice, K8sObject, ObjectKey, Service
from cilia.k8s.watch import Delete, Event, Invalid, Listed, Upsert
from cilia.linux.path_watch import DEBOUNCE_S
from tests.cilia.k8s.forms import service_form, yaml_of

pytestmark = pytest.mark.usefixtures("short_grace")


class Reader:
    """Follows a source in a task of its own and lets a test wait for what it believes."""

    def __init__(self, stream: AsyncIterator[list[Event]]) -> None:
        self.objects: dict[ObjectKey, K8sObject] = {}
        self.problems: dict[str, tuple[str, ...]] = {}
        self.listed = False
        self.deleted = 0
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._follow(stream))

    async def _follow(self, stream: AsyncIterator[list[Event]]) -> None:
        async for batch in stream:
            for event in batch:
                self._take(event)
            self._changed.set()

    def _take(self, event: Event) -> None:
        match event:
            case Upsert():
                self.objects[event.obj.key] = event.obj
            case Delete():
                self.deleted += 1
                del self.objects[event.key]
            case Invalid():
                self.problems[event.origin] = tuple(p.message for p in event.problems)
            case Listed():
                self.listed = True

    @property
    def names(self) -> list[str]:
        return sorted(key[2] for key in self.objects)

    @property
    def complaints(self) -> list[str]:
        return [message for messages in self.problems.values() for message in messages]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(8):
            while not condition():
                await self._changed.wait()
                self._changed.clear()

    async def quiet(self) -> None:
        """Waits longer than the source needs to notice and say anything."""
        await asyncio.sleep(DEBOUNCE_S * 2 + SETTLE_S)


class World:
    def __init__(self, directory: Path, settle_s: float | None = None) -> None:
        self.directory = directory
        self.source = ManifestSource(directory, settle_s=settle_s)
        self.services = Reader(self.source.watch(Service, EndpointSlice))
        self.problems = Reader(self.source.watch())
        self.task = asyncio.create_task(self.source.run())

    def write(self, name: str, *objects: str, ip: str = "10.96.0.1") -> None:
        path = self.directory / name
        path.write_bytes(yaml_of(*(service_form(obj, ip) for obj in objects)) if objects else b"")

    async def close(self) -> None:
        tasks = (self.task, self.services.task, self.problems.task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "first.yaml").write_bytes(yaml_of(service_form("first")))
    world = World(tmp_path)
    await world.services.until(lambda: world.services.listed)
    yield world
    await world.close()


async def test_the_list_is_complete_when_listed_is_said(world: World) -> None:
    assert world.services.names == ["first"]


async def test_a_new_an_edited_and_a_removed_file_are_followed(world: World) -> None:
    services = world.services
    world.write("a.yml", "a")
    await services.until(lambda: services.names == ["a", "first"])
    world.write("a.yml", "b")
    await services.until(lambda: services.names == ["b", "first"])
    (world.directory / "a.yml").unlink()
    await services.until(lambda: services.names == ["first"])


async def test_a_change_is_seen_soon(world: World) -> None:
    started = time.monotonic()
    world.write("a.yaml", "a")
    await world.services.until(lambda: "a" in world.services.names)
    assert time.monotonic() - started < 0.5


async def test_save_by_rename_deletes_nothing(world: World) -> None:
    services = world.services
    temporary = world.directory / ".first.yaml.swp"
    temporary.write_bytes(yaml_of(service_form("first"), service_form("second")))
    temporary.rename(world.directory / "first.yaml")
    await services.until(lambda: services.names == ["first", "second"])
    assert services.deleted == 0


@pytest.mark.usefixtures("whole_grace")
async def test_a_file_that_is_removed_and_made_anew_deletes_nothing(world: World) -> None:
    """As `git checkout` and `cp --remove-destination` do."""
    services, path = world.services, world.directory / "first.yaml"
    for second in ("second", "third"):
        path.unlink()
        await services.quiet()
        world.write("first.yaml", "first", second)
        await services.until(lambda second=second: second in services.names)  # type: ignore[misc]
    assert services.deleted == 1  # "second", when "third" came in its place
    assert "first" in services.names


@pytest.mark.usefixtures("whole_grace")
async def test_what_another_file_has_changes_hands_at_once(world: World) -> None:
    services = world.services
    world.write("z.yaml", "first", ip="10.96.0.9")
    await world.problems.until(lambda: bool(world.problems.complaints))
    (world.directory / "first.yaml").unlink()
    key = ("Service", "test", "first")
    await services.until(lambda: services.objects[key].spec.cluster_ip == "10.96.0.9")  # type: ignore[attr-defined]
    await world.problems.until(lambda: not world.problems.complaints)
    assert services.deleted == 0


async def test_an_empty_directory_in_the_place_of_another_removes_nothing(tmp_path: Path) -> None:
    """A file system that is not mounted leaves one."""
    directory, other = tmp_path / "manifests", tmp_path / "other"
    directory.mkdir()
    (directory / "first.yaml").write_bytes(yaml_of(service_form("first")))
    world = World(directory)
    await world.services.until(lambda: world.services.listed)
    directory.rename(other)
    directory.mkdir()
    await world.problems.until(lambda: EMPTY in world.problems.complaints)
    await world.services.quiet()
    assert (world.services.names, world.services.deleted) == (["first"], 0)
    world.write("second.yaml", "second")
    await world.services.until(lambda: world.services.names == ["second"])
    assert EMPTY not in world.problems.complaints
    (directory / "second.yaml").unlink()
    await world.services.until(lambda: not world.services.names)
    await world.close()


@pytest.mark.usefixtures("whole_grace")
async def test_save_in_place_deletes_nothing_between_truncation_and_content(
    tmp_path: Path,
) -> None:
    path = tmp_path / "first.yaml"
    path.write_bytes(yaml_of(service_form("first")))
    world = World(tmp_path, settle_s=1.0)  # more than a busy machine makes of the pause below
    services = world.services
    await services.until(lambda: services.listed)
    for _ in range(20):
        content = path.read_bytes()
        with path.open("wb") as file:
            file.flush()
            await asyncio.sleep(0.012)
            file.write(content)
    world.write("a.yaml", "a")
    await services.until(lambda: "a" in services.names)
    assert services.deleted == 0
    await world.close()


async def test_temporary_hidden_and_foreign_files_are_not_read(world: World) -> None:
    for name in (".hidden.yaml", "a.yaml~", "a.yaml.tmp", "notes.txt", "#a.yaml#"):
        (world.directory / name).write_bytes(yaml_of(service_form("nobody")))
    (world.directory / "dir.yaml").mkdir()
    problems = world.problems
    await problems.until(lambda: any("regular" in text for text in problems.complaints))
    world.write("last.yaml", "last")
    await world.services.until(lambda: "last" in world.services.names)
    assert world.services.names == ["first", "last"]


async def test_a_broken_file_is_a_problem_until_it_is_mended(world: World) -> None:
    path = world.directory / "first.yaml"
    path.write_text("kind: Service\nspec: [\n")
    await world.problems.until(lambda: bool(world.problems.complaints))
    assert world.services.names == ["first"]
    world.write("first.yaml", "first", "second")
    await world.services.until(lambda: world.services.names == ["first", "second"])
    await world.problems.until(lambda: not world.problems.complaints)


@pytest.mark.usefixtures("whole_grace")
async def test_a_renamed_file_changes_hands_without_a_word(world: World) -> None:
    (world.directory / "first.yaml").rename(world.directory / "other.yaml")
    await world.services.quiet()
    world.write("other.yaml", "first", "second")
    await world.services.until(lambda: world.services.names == ["first", "second"])
    assert world.services.deleted == 0


async def test_mounted_config_map_is_followed_through_its_links(tmp_path: Path) -> None:
    for version, name in (("..1", "a"), ("..2", "b")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "svc.yaml").write_bytes(yaml_of(service_form(name)))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "svc.yaml").symlink_to("..data/svc.yaml")
    world = World(tmp_path)
    try:
        await world.services.until(lambda: world.services.listed)
        (tmp_path / "..data_tmp").symlink_to("..2")
        os.rename(tmp_path / "..data_tmp", tmp_path / "..data")
        await world.services.until(lambda: world.services.names == ["b"])
    finally:
        await world.close()


async def test_everything_stays_while_the_directory_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "REOPEN_S", 0.05)
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "a.yaml").write_bytes(yaml_of(service_form("a")))
    world = World(directory)
    try:
        await world.services.until(lambda: world.services.listed)
        directory.rename(tmp_path / "away")
        await world.problems.until(lambda: bool(world.problems.complaints))
        assert world.services.names == ["a"]
        directory.mkdir()
        (directory / "b.yaml").write_bytes(yaml_of(service_form("b")))
        await world.services.until(lambda: world.services.names == ["b"])
        await world.problems.until(lambda: not world.problems.complaints)
        world.write("c.yaml", "c")
        await world.services.until(lambda: world.services.names == ["b", "c"])
    finally:
        await world.close()


async def test_a_directory_put_in_its_place_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "REOPEN_S", 0.05)
    for name in ("now", "next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yaml").write_bytes(yaml_of(service_form(name)))
    world = World(tmp_path / "now")
    try:
        await world.services.until(lambda: world.services.listed)
        (tmp_path / "now").rename(tmp_path / "before")
        (tmp_path / "next").rename(tmp_path / "now")
        await world.services.until(lambda: world.services.names == ["next"])
        await world.services.quiet()
        world.write("more.yaml", "more")
        await world.services.until(lambda: world.services.names == ["more", "next"])
    finally:
        await world.close()


async def test_a_file_that_comes_back_as_it_was_is_served_again(
    world: World, tmp_path: Path
) -> None:
    """Same inode, size and time: nothing but its absence tells that it has to be read."""
    aside = tmp_path.with_name(f"{tmp_path.name}-aside")
    (world.directory / "first.yaml").rename(aside)
    await world.services.until(lambda: world.services.names == [])
    aside.rename(world.directory / "first.yaml")
    await world.services.until(lambda: world.services.names == ["first"])


async def test_the_first_directory_is_served_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap of directories that is rolled back."""
    monkeypatch.setattr(manifests, "REOPEN_S", 0.05)
    place, other, aside = (tmp_path / name for name in ("place", "other", "aside"))
    place.mkdir()
    other.mkdir()
    (place / "a.yaml").write_bytes(yaml_of(service_form("a")))
    (other / "b.yaml").write_bytes(yaml_of(service_form("b")))
    world = World(place)
    try:
        await world.services.until(lambda: world.services.names == ["a"])
        place.rename(aside)
        other.rename(place)
        await world.services.until(lambda: world.services.names == ["b"])
        place.rename(other)
        aside.rename(place)
        await world.services.until(lambda: world.services.names == ["a"])
    finally:
        await world.close()


async def test_a_missing_directory_is_an_error_at_the_beginning(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        await ManifestSource(tmp_path / "none").run()


async def test_a_late_reader_gets_the_list(world: World) -> None:
    late = Reader(world.source.watch(Service))
    await late.until(lambda: late.listed)
    assert late.names == ["first"]
    late.task.cancel()


async def test_a_file_that_vanishes_before_it_rests_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(yaml_of(service_form("a")))
    world = World(tmp_path, settle_s=0.2)
    try:
        await asyncio.sleep(0)
        path.unlink()
        await world.services.until(lambda: world.services.listed)
        assert world.services.names == []
    finally:
        await world.close()


def test_a_file_is_read_when_it_is_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\n")
    with pytest.raises(Restless) as restless:
        read_at_rest(path, None)
    assert 0 < restless.value.wait_s <= SETTLE_S
    os.utime(path, (1, 1))
    stamp, _, data = read_at_rest(path, None)
    assert data == b"a: 1\n"
    assert read_at_rest(path, stamp)[2] is None


@pytest.mark.usefixtures("whole_grace")
def test_a_file_that_shrank_or_is_empty_has_to_rest_longer(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\n" * 2)
    os.utime(path, (1, 1))
    whole, _, _ = read_at_rest(path, None)
    for data in (b"a: 1\n", b""):
        path.write_bytes(data)
        earlier = time.time() - 2 * SETTLE_S
        os.utime(path, (earlier, earlier))
        with pytest.raises(Restless) as restless:
            read_at_rest(path, whole)
        assert restless.value.wait_s > GRACE_S / 2


@pytest.mark.usefixtures("whole_grace")
async def test_a_file_written_in_place_loses_nothing_meanwhile(world: World) -> None:
    path = world.directory / "first.yaml"
    whole = yaml_of(service_form("first"), service_form("second", "10.96.0.2"))
    for part in (b"", whole[:40], whole[: whole.index(b"---")]):
        path.write_bytes(part)
        await world.services.quiet()
        assert world.services.names == ["first"]
    path.write_bytes(whole)
    await world.services.until(lambda: world.services.names == ["first", "second"])
    assert world.services.deleted == 0


async def test_an_object_that_went_in_place_is_gone_when_the_file_rests(world: World) -> None:
    services = world.services
    world.write("first.yaml", "another-name")
    await services.until(lambda: services.names == ["another-name", "first"])
    await services.until(lambda: services.names == ["another-name"])
    world.write("first.yaml")
    await services.until(lambda: services.names == [])


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "directory": Path.mkdir,
    "terminal": lambda path: path.symlink_to("/dev/ptmx"),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FILES)
async def test_what_is_no_file_is_a_problem_and_the_others_are_read(
    world: World, kind: str
) -> None:
    NO_FILES[kind](world.directory / "a.yaml")
    world.write("b.yaml", "b", ip="10.96.0.2")
    await world.services.until(lambda: world.services.names == ["b", "first"])
    await world.problems.until(lambda: world.problems.complaints == ["is not a regular file"])


async def test_a_file_that_never_rests_is_a_problem_and_the_others_are_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_files, "PATIENCE_S", 0.2)

    async def write_on() -> None:
        with (world.directory / "a.yaml").open("ab", buffering=0) as file:
            while True:
                file.write(b"# more\n")
                await asyncio.sleep(SETTLE_S / 10)

    writing = asyncio.create_task(write_on())
    try:
        world.write("b.yaml", "b", ip="10.96.0.2")
        await world.services.until(lambda: world.services.names == ["b", "first"])
        await world.problems.until(lambda: "has been written to" in str(world.problems.complaints))
    finally:
        writing.cancel()
    await world.problems.until(lambda: world.problems.complaints == [])


async def test_a_file_whose_name_is_no_utf8_is_read_and_named(world: World) -> None:
    name = os.fsdecode(b"caf\xe9\x1b.yaml")
    world.write(name, "a", ip="10.96.0.2")
    await world.services.until(lambda: world.services.names == ["a", "first"])
    (world.directory / name).write_bytes(b"{")
    origin = r"manifests:caf\xe9\x1b.yaml"
    await world.problems.until(lambda: bool(world.problems.problems.get(origin)))


async def test_all_files_are_read_again_after_a_failure(tmp_path: Path) -> None:
    """Events of a reading that failed on their way are not lost."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_bytes(yaml_of(service_form(name)))
    source = ManifestSource(tmp_path)
    publish, calls = source._store.publish, 0

    def fail_once(events: Iterable[Event]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("once")
        publish(events)

    source._files._publish = fail_once
    with pytest.raises(RuntimeError):
        await source.run()
    assert not source._store.complete
    services = Reader(source.watch(Service))
    task = asyncio.create_task(source.run())
    await services.until(lambda: services.listed)
    assert services.names == ["a", "b"]
    for running in (task, services.task):
        running.cancel()

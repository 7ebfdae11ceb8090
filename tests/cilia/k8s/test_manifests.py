# SPDX-License-Identifier: Apache-2.0
"""The directory: real files, real inotify."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cilia.k8s import manifests
from cilia.k8s.manifests import ManifestSource, read_settled
from cilia.k8s.objects import EndpointSlice, K8sObject, ObjectKey, Service
from cilia.k8s.watch import Delete, Event, Invalid, Listed, Upsert
from tests.cilia.k8s.forms import service_form, yaml_of


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
        await asyncio.sleep((manifests.DEBOUNCE_MS * 2) / 1000 + manifests.SETTLE_S)


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
    await problems.until(lambda: any("directory" in text for text in problems.complaints))
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
        await world.services.until(lambda: world.services.names == ["a"])
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
        await world.services.until(lambda: world.services.names == ["a"])
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
        await world.services.until(lambda: world.services.names == ["now"])
        (tmp_path / "now").rename(tmp_path / "before")
        (tmp_path / "next").rename(tmp_path / "now")
        await world.services.until(lambda: world.services.names == ["next"])
        await world.services.quiet()
        world.write("more.yaml", "more")
        await world.services.until(lambda: world.services.names == ["more", "next"])
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


def test_a_file_that_vanishes_while_it_is_read_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\n")
    real_sleep = time.sleep

    def vanish(seconds: float) -> None:
        path.unlink()
        real_sleep(0)

    monkeypatch.setattr(time, "sleep", vanish)
    source = ManifestSource(tmp_path, settle_s=0.2)
    assert source._read_step(["a.yaml"]) == [("a.yaml", None)]


def test_a_file_is_read_when_it_is_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\n")
    started = time.monotonic()
    stamp, data = read_settled(path, None)
    assert data == b"a: 1\n"
    assert time.monotonic() - started >= manifests.SETTLE_S * 0.5
    assert read_settled(path, stamp) == (stamp, None)
    os.utime(path, (1, 1))
    started = time.monotonic()
    assert read_settled(path, stamp)[1] == b"a: 1\n"
    assert time.monotonic() - started < manifests.SETTLE_S

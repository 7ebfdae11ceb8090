# SPDX-License-Identifier: Apache-2.0
"""Directories and files behind symbolic links and mounts are followed to where they lead now."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cilia.k8s.directory_files import EMPTY
from cilia.linux.mounts import mount
from tests.bpf.world import unmount
from tests.cilia.k8s.forms import service_form, yaml_of
from tests.cilia.k8s.test_manifests import World

pytestmark = pytest.mark.usefixtures("short_grace")


def directory(path: Path, *names: str) -> Path:
    """A directory with a Service of each name."""
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / f"{name}.yaml").write_bytes(yaml_of(service_form(name)))
    return path


def point(link: Path, target: str | Path) -> None:
    """Make or retarget a link in one step, as `ln -sfn` does."""
    new = link.with_name(".link")
    new.symlink_to(target)
    new.rename(link)


class Links:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.worlds: list[World] = []

    async def follow(self, place: Path, *names: str) -> World:
        world = World(place)
        self.worlds.append(world)
        await world.services.until(lambda: world.services.listed)
        assert world.services.names == list(names)
        return world


@pytest.fixture
async def links(tmp_path: Path) -> AsyncIterator[Links]:
    made = Links(tmp_path)
    yield made
    for world in made.worlds:
        await world.close()


def the_link_itself(base: Path) -> tuple[Path, Callable[[], None]]:
    point(base / "place", directory(base / "one", "a"))
    directory(base / "two", "b")
    return base / "place", lambda: point(base / "place", "two")


def a_link_that_it_leads_to(base: Path) -> tuple[Path, Callable[[], None]]:
    directory(base / "data" / "one", "a")
    directory(base / "data" / "two", "b")
    point(base / "data" / "current", "one")
    point(base / "place", base / "data" / "current")
    return base / "place", lambda: point(base / "data" / "current", "two")


def a_link_in_the_middle(base: Path) -> tuple[Path, Callable[[], None]]:
    """As in a mounted ConfigMap of which a part is named."""
    directory(base / "volume" / "..1" / "services", "a")
    directory(base / "volume" / "..2" / "services", "b")
    point(base / "volume" / "..data", "..1")
    return base / "volume" / "..data" / "services", lambda: point(base / "volume" / "..data", "..2")


def a_parent(base: Path) -> tuple[Path, Callable[[], None]]:
    directory(base / "parent" / "place", "a")
    directory(base / "other" / "place", "b")

    def swap() -> None:
        (base / "parent").rename(base / "former")
        (base / "other").rename(base / "parent")

    return base / "parent" / "place", swap


@pytest.mark.parametrize(
    "stage", [the_link_itself, a_link_that_it_leads_to, a_link_in_the_middle, a_parent]
)
async def test_another_directory_under_the_name_is_followed_at_once(
    links: Links, stage: Callable[[Path], tuple[Path, Callable[[], None]]]
) -> None:
    place, turn = stage(links.base)
    world = await links.follow(place, "a")
    started = time.monotonic()
    turn()
    await world.services.until(lambda: world.services.names == ["b"])
    assert time.monotonic() - started < 2.0
    world.directory = place
    world.write("more.yaml", "more")
    await world.services.until(lambda: world.services.names == ["b", "more"])


async def test_a_file_behind_a_link_is_followed_when_it_is_edited_where_it_is(links: Links) -> None:
    elsewhere = directory(links.base / "elsewhere", "a", "b")
    place = directory(links.base / "place")
    point(place / "x.yaml", elsewhere / "a.yaml")
    world = await links.follow(place, "a")
    started = time.monotonic()
    (elsewhere / "b.yaml").rename(elsewhere / "a.yaml")
    await world.services.until(lambda: world.services.names == ["b"])
    directory(elsewhere, "c")
    point(place / "y.yaml", elsewhere / "c.yaml")
    await world.services.until(lambda: world.services.names == ["b", "c"])
    (elsewhere / "c.yaml").unlink()
    await world.services.until(lambda: world.services.names == ["b"])
    assert time.monotonic() - started < 3.0


@pytest.mark.root
async def test_a_directory_that_is_mounted_over_is_followed(links: Links) -> None:
    place = directory(links.base / "place", "a")
    world = await links.follow(place, "a")
    mount("tmpfs", place)
    try:
        await world.problems.until(lambda: EMPTY in world.problems.complaints)
        assert world.services.names == ["a"]
        directory(place, "b")
        await world.services.until(lambda: world.services.names == ["b"])
    finally:
        unmount(place)
    await world.services.until(lambda: world.services.names == ["a"])

# SPDX-License-Identifier: Apache-2.0
"""Links pinned by name in a directory of ours: the record of what is attached.

A link is pinned beside its predecessor and renamed over it. A process that was killed between the
two leaves both; the new one takes its place when the name is next looked at.
"""

from __future__ import annotations

from pathlib import Path

from bpf import pins
from bpf.errors import NotFound
from bpf.link import Link, LinkInfo

__all__ = ["LinkPins"]


class LinkPins:
    """The pins of one directory, which is made if it is not there, also when it went."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def open(self, name: str) -> Link | None:
        """The link under a name, held by the caller."""
        path = self._directory / name
        new = path.with_name(name + pins.NEW)
        if new.exists():
            new.rename(path)  # made by a process that was killed before this step
        try:
            return Link.open_pinned(path)
        except NotFound:
            return None

    def read(self, name: str) -> LinkInfo | None:
        """What the link under a name runs, and where."""
        link = self.open(name)
        if link is None:
            return None
        with link:
            return link.info()

    def read_all(self) -> dict[str, LinkInfo]:
        """Every link by its name."""
        paths = self._directory.iterdir() if self._directory.is_dir() else ()
        names = {path.name.removesuffix(pins.NEW) for path in paths}
        found = {name: self.read(name) for name in names}
        return {name: info for name, info in found.items() if info is not None}

    def put(self, name: str, link: Link) -> None:
        """Give a name to a link, in the place of whatever had it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        pins.replace(link.number, self._directory / name)

    def remove(self, name: str) -> None:
        """Remove a pin if it is there."""
        pins.unpin(self._directory / name)

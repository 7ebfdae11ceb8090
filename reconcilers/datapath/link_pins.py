# SPDX-License-Identifier: Apache-2.0
"""Links pinned by name in a directory of ours: the record of what is attached.

A link is pinned beside its predecessor and renamed over it. A process that was killed between the
two leaves both; the new one takes its place when the name is next looked at.

Links are held besides their pins: a pin that somebody removes, or a file system that somebody
unmounts, then detaches nothing, and the link is pinned again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bpf import pins
from bpf.errors import NotFound
from bpf.link import Link, LinkInfo

__all__ = ["LinkPins"]


class _Held(NamedTuple):
    link: Link
    #: As it was when it was attached.
    info: LinkInfo


class LinkPins:
    """The pins of one directory, which is made if it is not there, also when it went. Used from one
    thread at a time.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        #: What the instance has for itself.
        self.pin_dir = directory.parent
        self._held: dict[str, _Held] = {}

    def open(self, name: str) -> Link | None:
        """The link that was put under a name, or that an earlier run pinned there; ours to keep."""
        if name not in self._held:
            pinned = self._open_pinned(name)
            if pinned is None:
                return None
            self._held[name] = _Held(pinned, pinned.info())
        return self._held[name].link

    def read(self, name: str) -> LinkInfo | None:
        """What the link that is pinned under a name runs, and where."""
        link = self._open_pinned(name)
        if link is None:
            return None
        with link:
            return link.info()

    def read_all(self) -> dict[str, LinkInfo]:
        """Every pinned link by its name."""
        paths = self._directory.iterdir() if self._directory.is_dir() else ()
        names = {path.name.removesuffix(pins.NEW) for path in paths}
        found = {name: self.read(name) for name in names}
        return {name: info for name, info in found.items() if info is not None}

    def have(self, link_id: int) -> bool:
        """True if the link is pinned here, under whatever name."""
        return any(info.id == link_id for info in self.read_all().values())

    def was_touched(self, name: str) -> bool:
        """True if the link that was put under a name is not there as it was."""
        held = self._held.get(name)
        return held is not None and self.read(name) != held.info

    def put(self, name: str, link: Link) -> LinkInfo:
        """Give a name to a link, in the place of whatever had it; the link is ours from then on."""
        info = link.info()
        pinned = self.read(name)
        if pinned is None or pinned.id != info.id:
            self._directory.mkdir(parents=True, exist_ok=True)
            pins.replace(link.number, self._directory / name)
        former = self._held.get(name)
        self._held[name] = _Held(link, info)
        if former is not None and former.link is not link:
            former.link.close()
        return info

    def remove(self, name: str) -> None:
        """Remove a pin if it is there, and let go of the link."""
        pins.unpin(self._directory / name)
        held = self._held.pop(name, None)
        if held is not None:
            held.link.close()

    def close(self) -> None:
        """Let go of all links; what is pinned stays in force."""
        for held in self._held.values():
            held.link.close()
        self._held = {}

    def _open_pinned(self, name: str) -> Link | None:
        path = self._directory / name
        new = path.with_name(name + pins.NEW)
        if new.exists():
            new.rename(path)  # made by a process that was killed before this step
        try:
            return Link.open_pinned(path)
        except NotFound:
            return None

# SPDX-License-Identifier: Apache-2.0
"""`attachments`: programs at the hooks of devices and cgroups.

A program is replaced in one step; what is in force stays until its successor is. Links announce
nothing when someone detaches them: they are read back once a second (`CONFIG`). Pins
that vanish are seen by inotify and tc filters by netlink, and asked for at once
(`PinWatch`, `FilterWatch`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from bpf import pins
from bpf.errors import Invalid, NotFound, Unsupported
from bpf.program import Program
from cilia.linux.errors import NoDevice, Overrun
from cilia.linux.netlink import Group, Subscription
from cilia.linux.netns import NetNS
from cilia.linux.path_watch import PathWatch
from cilia.linux.rtnl import FilterMessage
from reconcilers.config import Config
from reconcilers.datapath.attachment_places import Attached, Places, has_mark
from reconcilers.kernel_watch import Concerns
from statedb import Change, ReadTxn, Table
from tables.datapath.attachments import TARGET, Attachment
from tables.node.devices import Device, device_by_name

__all__ = [
    "CONFIG",
    "AttachmentOperations",
    "FilterWatch",
    "PinWatch",
    "concerns_attachments",
]

T = TypeVar("T")

# Where a target should be that does not exist; 0 is what a link has that lost its target.
_GONE: Final = -1

# Attaching to TCX waits for an RCU grace period under the kernel's network lock (measured: 16 ms),
# one after the other whatever the number of threads. Rounds are short, so that a status does not
# wait for many others; links that someone detached are found by reading all once a second.
CONFIG: Final = Config(round_size=16, in_thread=True, verify_interval_s=1.0)


class AttachmentOperations:
    """Operations with verification; see `reconcilers.operations`.

    `links` serves the hooks of devices, `cgroups` those of a cgroup; `filters`, where given, takes
    over ingress and egress (no TCX). `restore` puts back pins of programs that somebody took; it is
    called before each read-back.
    """

    def __init__(
        self,
        devices: Table[Device],
        links: Places,
        cgroups: Places,
        filters: Places | None = None,
        *,
        restore: Callable[[], None] = lambda: None,
        netns: NetNS | None = None,
    ) -> None:
        self._devices = devices
        self._links = links
        self._cgroups = cgroups
        self._filters = filters
        self._restore = restore
        self._netns = netns

    def _places(self, row: Attachment) -> Places:
        if not row.hook.is_device:
            return self._cgroups
        if self._filters is not None and row.hook in ("ingress", "egress"):
            return self._filters
        return self._links

    def _all_places(self) -> list[Places]:
        every = (self._links, self._cgroups, self._filters)
        return [places for places in every if places is not None]

    def _inside(self, work: Callable[[], T]) -> T:
        """An interface index means what the calling thread's namespace says."""
        return work() if self._netns is None else self._netns.run(work)

    # Update, delete, prune

    def update(self, txn: ReadTxn, revision: int, obj: Attachment) -> Attachment:
        def attach() -> Attached:
            with self._target(txn, obj) as (number, fd), self._program(obj) as program:
                return self._places(obj).attach(obj, number, fd, program)

        try:
            found = self._inside(attach)
        except (Invalid, Unsupported):
            if not obj.optional:
                raise
            return msgspec.structs.replace(obj, target_id=0, program_id=0, link_id=0)
        return msgspec.structs.replace(
            obj,
            target_id=found.target_id,
            program_id=found.program_id,
            link_id=found.link_id,
        )

    def delete(self, txn: ReadTxn, revision: int, obj: Attachment) -> None:
        places = self._places(obj)
        self._inside(lambda: places.detach(places.name(obj)))

    def prune(self, txn: ReadTxn, objects: Iterable[Attachment]) -> None:
        keep = {(id(self._places(obj)), self._places(obj).name(obj)) for obj in objects}

        def prune() -> None:
            for places in self._all_places():
                for name in places.installed():
                    if (id(places), name) not in keep:
                        places.detach(name)

        self._inside(prune)

    @contextmanager
    def _target(self, txn: ReadTxn, row: Attachment) -> Iterator[tuple[int, int]]:
        """(what a link's info calls the target, what it is attached by).

        Raises: NoDevice; FileNotFoundError for a cgroup that is not there.
        """
        if row.hook.is_device:
            dev = device_by_name(self._devices, txn, row.target)
            if dev is None:
                raise NoDevice(row.target)
            yield dev.index, dev.index
            return
        fd = os.open(row.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield os.fstat(fd).st_ino, fd
        finally:
            os.close(fd)

    def _program(self, row: Attachment) -> Program:
        return Program.open_pinned(Path(row.program))

    # Verify

    def actual(self) -> Mapping[Hashable, Any]:
        self._restore()

        def read() -> dict[Hashable, Any]:
            return {
                name: (found.target_id, found.program_id)
                for places in self._all_places()
                for name, found in places.installed().items()
            }

        return self._inside(read)

    def expected(
        self, txn: ReadTxn, objects: Iterable[Attachment]
    ) -> Iterable[tuple[Hashable, Any, Attachment]]:
        """What is pinned as the program now counts: a new one under the old name is taken up."""
        program_ids: dict[str, int] = {}
        for obj in objects:
            if obj.optional and not obj.link_id:
                continue
            if obj.program not in program_ids:
                program_ids[obj.program] = self._program_id(obj)
            yield (
                self._places(obj).name(obj),
                (self._target_id(txn, obj), program_ids[obj.program]),
                obj,
            )

    def _program_id(self, row: Attachment) -> int:
        """Without a pin, what is attached: nothing better is known."""
        try:
            with self._program(row) as program:
                return program.info().id
        except NotFound:
            return row.program_id

    def _target_id(self, txn: ReadTxn, row: Attachment) -> int:
        if not row.hook.is_device:
            return _cgroup_id(row.target)
        dev = device_by_name(self._devices, txn, row.target)
        return _GONE if dev is None else dev.index

    def describe(self, key: Hashable, value: Any | None) -> tuple[str, str]:
        if value is None:
            return str(key), ""
        target, program = value
        where = {0: "detached", _GONE: "its target is gone"}.get(target, f"at {target}")
        return str(key), f"program {program} {where}"


def _cgroup_id(directory: str) -> int:
    try:
        return os.stat(directory).st_ino
    except FileNotFoundError:
        return _GONE


def concerns_attachments(desired: Table[Attachment]) -> Concerns[Device]:
    """Which changes of the table `devices` may be drift: a device that is another one now."""

    def concerns(txn: ReadTxn, change: Change[Device]) -> bool:
        dev = change.obj
        return any(
            change.deleted or row.target_id != dev.index
            for name in (dev.name, *dev.alternative_names)
            for row in desired.list(txn, name, TARGET)
            if row.target_id
        )

    return concerns


class PinWatch:
    """Calls `ask` when a pin of a link vanishes from one of the directories, or the way to them
    changes: a directory is removed, or the file system is unmounted.
    """

    def __init__(self, directories: Sequence[Path], ask: Callable[[], None]) -> None:
        self._directories = directories
        self._ask = ask

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            with PathWatch(self._directories, self._directories) as watch:
                self._ask()  # for what happened before the watch stood
                changed: frozenset[Path] = frozenset()
                while not watch.leads_elsewhere(changed):
                    changed = await watch.wait()
                    if any(not _is_new(path) and not path.exists() for path in changed):
                        self._ask()


def _is_new(path: Path) -> bool:
    """A pin that was about to take its place."""
    return path.name.endswith(pins.NEW)


class FilterWatch:
    """Calls `ask` when a tc filter that may be ours goes, or when events were lost."""

    def __init__(self, ask: Callable[[], None], netns: NetNS | None = None) -> None:
        self._ask = ask
        self._netns = netns

    async def run(self) -> None:
        """Runs until cancelled."""
        with Subscription((Group.TC,), self._netns) as events:
            while True:
                await events.wait()
                if self._lost(events):
                    self._ask()

    def _lost(self, events: Subscription) -> bool:
        try:
            messages = events.read()
        except Overrun:
            return True
        return any(
            isinstance(m, FilterMessage) and m.deleted and (m.handle == 0 or has_mark(m.handle))
            for m in messages
        )

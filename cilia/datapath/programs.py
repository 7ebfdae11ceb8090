# SPDX-License-Identifier: Apache-2.0
"""The programs of this build, and how they take the place of those that are in force.

::

    publish (pins) ──> rows of `attachments` ──reconciler──> links ──> retire (maps, pins)

A start publishes at once, unless programs in force use maps of another layout or size: then the
new maps must be filled first, and until then the links of the run before are not touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import structlog

from bpf.errors import BPFError
from cilia.program.errors import ProgramError
from reconcilers.reconciler import Reconciler
from statedb import DB, Channel, Table, wait_initialized
from tables.datapath.attachments import AttachHook, Attachment

if TYPE_CHECKING:
    from bpf.datapath import NodeDatapath
    from bpf.foreign import ForeignProgram

__all__ = ["SOCKET_OWNER", "Attaching", "NodePrograms", "Succession", "socket_attachments"]

log = structlog.get_logger("datapath")

#: Owner of the attachments of socket programs.
SOCKET_OWNER: Final = "socket-lb"

#: Links that still run a predecessor are looked at again after this time: a prune writes no row.
LOOK_AGAIN_S: Final = 1.0


def nothing() -> None:
    """Put back nothing."""


@dataclass(frozen=True)
class Attaching:
    """What the reconciler of `attachments` needs to know of the programs."""

    # Directories of the links' pins, on a bpffs.
    device_links: Path
    cgroup_links: Path
    # Rows that are the same for the whole run.
    rows: Sequence[Attachment] = ()
    # Nothing is attached before it is closed; None: at once.
    published: Channel | None = None
    # Puts back the pins of programs and maps.
    restore: Callable[[], None] = nothing
    # Directories of these pins.
    objects: Sequence[Path] = ()


class NodePrograms:
    """Pins of a node's programs. Its methods block; they may be called from any thread."""

    def __init__(self, node: NodeDatapath, prepare: Callable[[], None] = nothing) -> None:
        """`node`: its programs are loaded. `prepare` makes sure that there is a directory to pin
        in, which somebody may have removed or unmounted; it raises what people are told.
        """
        self._node = node
        self._prepare = prepare
        self._lock = threading.Lock()
        self.published = Channel()

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds that each phase of the start took."""
        return self._node.timings

    @property
    def migrating(self) -> bool:
        """True if the maps must be filled before the programs are published."""
        return self._node.migrating

    def has(self, constant: str) -> bool:
        """True if programs were loaded with this flag set."""
        return any(self._node.constants.get(constant, b""))

    def load_anew(self, constants: Mapping[str, bytes]) -> None:
        """Load the programs with other constants, and pin them in the place of those before.

        To be called when this start's programs are in force; whoever attaches takes them up.
        Raises: BPFError; the programs before stay.
        """
        with self._lock:
            self._node.load(constants)
            self._node.publish()

    def attaching(self) -> Attaching:
        node = self._node
        rows = socket_attachments(node.config.cgroup, node.programs_dir, node.socket_programs)
        return Attaching(
            node.device_links_dir,
            node.links_dir,
            rows,
            self.published,
            self._restore,
            (node.maps_dir, node.programs_dir),
        )

    def publish(self) -> None:
        """Pin the programs and let the reconciler attach them. Raises: BPFError."""
        with self._lock:
            self._node.carry()
            self._node.publish()
        self.published.close()

    def _restore(self) -> None:
        with self._lock:
            self._prepare()
            lost = self._node.restore()
        if lost:
            log.warning("pins that were gone are made anew", pins=lost)

    def watch_filters(self, attached: Callable[[], Mapping[str, int]]) -> None:
        """`attached`: the tc filters by place, with the id of the program that each runs."""
        self._node.count_unlinked(attached)

    def predecessors(self) -> list[str]:
        """Pins of links, and tc filters, that still run a program of the run before."""
        return self._node.predecessors()

    def retire(self) -> None:
        """Remove what the run before left; nothing may run its programs any more."""
        with self._lock:
            self._node.carry()
            self._node.retire()

    def took(self, phase: str, seconds: float) -> None:
        self._node.timings[phase] = seconds

    def links(self) -> list[dict[str, Any]]:
        """What is attached, of this run or an earlier one: links on the cgroup and on devices, and
        tc filters where devices have no links.
        """
        node = self._node
        at = {node.links_dir: "cgroup", node.device_links_dir: "device"}
        found = [
            {"name": path.name, "at": where}
            for directory, where in at.items()
            for path in (sorted(directory.iterdir()) if directory.is_dir() else ())
        ]
        return [*found, *({"name": name, "at": "device"} for name in sorted(node.unlinked()))]

    def foreign_programs(self) -> list[ForeignProgram]:
        """Programs of others on the hooks that these have."""
        from bpf.foreign import foreign_programs

        directories = (self._node.links_dir, self._node.device_links_dir)
        return foreign_programs(directories, self._node.config.cgroup)


def socket_attachments(cgroup: Path, programs_dir: Path, names: Iterable[str]) -> list[Attachment]:
    """One row a program: its name is that of its hook."""
    return [
        Attachment(
            target=str(cgroup),
            hook=AttachHook(name),
            owner=SOCKET_OWNER,
            program=str(programs_dir / name),
        )
        for name in names
    ]


@dataclass(frozen=True)
class Succession:
    """Puts the programs of this run in the place of those of the run before."""

    db: DB
    attachments: Table[Attachment]
    reconciler: Reconciler[Attachment]
    programs: NodePrograms

    async def begin(self) -> None:
        """Attach now what needs no maps that must be filled first. Raises: ProgramError."""
        if not self.programs.migrating:
            await self._attach()

    async def finish(self) -> None:
        """The maps are complete: attach what waited for them, remove what the run before left."""
        await wait_initialized(self.db, self.attachments)
        if not self.programs.published.closed:
            await self._attach()
        while True:
            changed = self.db.look(lambda txn: self.attachments.all_watch(txn)[1])
            await self._attempted()
            if not await anyio.to_thread.run_sync(self.programs.predecessors):
                break
            with anyio.move_on_after(LOOK_AGAIN_S):
                await changed.wait()
        while not await self._retired():
            await anyio.sleep(LOOK_AGAIN_S)  # the reconciler puts back what is gone

    async def _retired(self) -> bool:
        """False while somebody takes away the pins."""
        try:
            await anyio.to_thread.run_sync(self.programs.retire)
        except (OSError, BPFError, RuntimeError) as error:
            log.warning("what the run before left stays for now", error=str(error))
            return False
        return True

    async def _attach(self) -> None:
        started = anyio.current_time()
        try:
            await anyio.to_thread.run_sync(self.programs.publish)
        except BPFError as error:
            raise ProgramError(str(error)) from None
        await self._attempted()
        self.programs.took("attach", anyio.current_time() - started)

    async def _attempted(self) -> None:
        """Wait until each row that there is was attempted."""
        revision = self.db.look(self.attachments.revision)
        await self.reconciler.wait_until_reconciled(revision)

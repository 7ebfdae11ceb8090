# SPDX-License-Identifier: Apache-2.0
"""Sockets whose backend left its Service are closed, so that their owners dial the Service again.

A translated connection goes straight to the backend: nothing on its way would notice that the
backend is gone, and a UDP client would send into the void for as long as it keeps its socket. What
a Service still has is never touched, terminating and quarantined backends included, and a socket
that dialled the backend itself has no entry in the socket map.

::

    backends, frontends  --a row went-->  wait until the maps follow  -->  sweep
    sweep: entries that lead to what went  x  open sockets of each namespace  -->  destroy, forget

The tables decide, so nothing has to be remembered: after a restart one sweep over all entries finds
what changed meanwhile. Sockets of a protocol that the kernel does not list stay open, which status
tells; once it lists them, a sweep over all entries closes them. Design: Cilium's termination of
connections to deleted service backends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog

from bpf.maps.lb import LBMaps
from bpf.maps.text import protocol_name
from cilia.linux.namespaces import DIRECTORIES
from cilia.linux.sockdiag import SocketDiag
from cilia.loadbalancer.connections.translated_sockets import (
    PROTOCOLS,
    UDP,
    Entries,
    Way,
    address_of,
    backend_of,
    dead_keys,
    frontend_of,
    listed_protocols,
    namespaces_of,
    read_entries,
    translated,
)
from reconcilers.reconciler import Health
from statedb import DB, ChangeIterator, ReadTxn, RWTable, Table, WatchSet, wait_initialized
from tables.addressing import AT_PORT, SCOPE_EXTERNAL, SCOPE_INTERNAL, L3n4Addr
from tables.loadbalancer import backends as backend_rows
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import Frontend

__all__ = ["Served", "SocketTermination", "TerminationConfig"]

log = structlog.get_logger("sockets")

NAME: Final = "socket-termination"
UNABLE: Final = "this kernel closes no sockets of removed backends: CONFIG_INET_DIAG_DESTROY is off"
UNLISTED: Final = (
    "{} sockets of removed backends stay open: this kernel does not list them, "
    "load the modules tcp_diag and udp_diag"
)


@dataclass(frozen=True, slots=True)
class TerminationConfig:
    """Whose sockets, and where they are."""

    # TCP notices by itself when its peer is gone, and may be served to its end.
    tcp: bool = False
    # Those of pods too, not only those of the node's own namespace.
    pods: bool = True
    # Where container runtimes name the namespaces of pods; those of processes are found as well.
    directories: tuple[Path, ...] = DIRECTORIES
    # Rows that go together (a Service with all of its backends) are one sweep.
    settle_s: float = 0.05
    # The maps may be waited for in vain: a frontend that fails is tried again for ever.
    maps_wait_s: float = 5.0
    # How often closed sockets are looked for, and from which share of the map on it pays.
    prune_interval_s: float = 60.0
    prune_from: float = 0.5

    @property
    def protocols(self) -> tuple[int, ...]:
        return PROTOCOLS if self.tcp else (UDP,)


class Served:
    """Whether what a socket dialled still has the backend that it was given; one snapshot."""

    def __init__(self, txn: ReadTxn, frontends: Table[Frontend], backends: Table[Backend]) -> None:
        self._txn, self._frontends, self._backends = txn, frontends, backends

    def __call__(self, way: Way, protocol: int) -> bool:
        """By Service, not by what its frontend chose last: a backend that traffic policy or
        topology prefers no more keeps its connections."""
        names = self._services_of(way, protocol)
        address = address_of(way.key.address, way.key.port, protocol)
        rows = self._backends.list(self._txn, address, backend_rows.ADDRESS)
        return any(row.service_name in names for row in rows)

    def _services_of(self, way: Way, protocol: int) -> set[str]:
        """The Services behind what was dialled: that address, or any address of the node."""
        ip, port = way.value.address, way.value.port
        names: set[str] = set()
        for dialled in (ip, bytes(len(ip))):
            for scope in (SCOPE_EXTERNAL, SCOPE_INTERNAL):
                fe = self._frontends.get(self._txn, address_of(dialled, port, protocol, scope))
                if fe is not None:
                    names.add(fe.service_name)
                    if fe.redirect_to is not None:
                        names.add(fe.redirect_to)
        return names


class SocketTermination:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        frontends: RWTable[Frontend],
        backends: RWTable[Backend],
        maps: LBMaps,
        maps_follow: Callable[[int], Awaitable[object]],
        health: Health,
        config: TerminationConfig | None = None,
    ) -> None:
        """`maps_follow(revision)` returns when the frontends up to it were written to the maps."""
        self._health = health
        self._db, self._frontends, self._backends = db, frontends, backends
        self._maps, self._maps_follow = maps, maps_follow
        self._config = config or TerminationConfig()
        self._suspects: set[bytes] = set()
        #: Protocols whose sockets the kernel lists, and that are closed.
        self._listed = self._config.protocols

    async def run(self) -> None:
        """Close what lost its backend before now, then whatever does; also prunes the maps.

        Ends at once where the kernel cannot do it, and says so. Raises: NetlinkError.
        """
        self._listed = self._config.protocols
        able = await anyio.to_thread.run_sync(_can_destroy)
        self._health(NAME, able, "Running" if able else UNABLE)
        if not able:
            log.warning(UNABLE)
            return
        with self._db.write_txn(self._backends, self._frontends) as wtxn:
            gone_backends = self._backends.changes(wtxn)
            gone_frontends = self._frontends.changes(wtxn)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._prune_loop)
                await wait_initialized(self._db, self._frontends, self._backends)
                await self._sweep(None)
                await self._follow(gone_backends, gone_frontends)
        finally:
            gone_backends.close()
            gone_frontends.close()

    async def _follow(
        self, backends: ChangeIterator[Backend], frontends: ChangeIterator[Frontend]
    ) -> None:
        while True:
            lost, changed = self._db.look(partial(_lost, backends, frontends))
            if lost:
                await self._sweep(lost)
                continue
            await changed.wait(settle_s=self._config.settle_s)

    async def _sweep(self, lost: set[L3n4Addr] | None) -> None:
        """Wait for the maps, or the owner of a closed socket could be given the same backend."""
        if await self._more_is_listed():
            lost = None
        revision = self._db.look(self._frontends.revision)
        with anyio.move_on_after(self._config.maps_wait_s):
            await self._maps_follow(revision)
        closed = await anyio.to_thread.run_sync(self.sweep, lost)
        if closed:
            log.info("closed sockets of removed backends", sockets=closed)

    async def _more_is_listed(self) -> bool:
        """True if the kernel lists sockets that it did not list before; status tells which it does
        not list, when that changes.
        """
        before, wanted = self._listed, self._config.protocols
        self._listed = tuple(await anyio.to_thread.run_sync(listed_protocols, wanted))
        if self._listed != before:
            missing = [protocol_name(number) for number in wanted if number not in self._listed]
            text = UNLISTED.format(" and ".join(missing)) if missing else "Running"
            self._health(NAME, not missing, text)
            if missing:
                log.warning(text)
        return not set(self._listed) <= set(before)

    def sweep(self, lost: Iterable[L3n4Addr] | None = None) -> int:
        """Close the sockets whose backend their Service has no more; how many. Blocking.

        `lost`: look only at entries that name one of these, as a backend or as a frontend.
        """
        entries = Entries(self._maps)
        entries.load(_everything if lost is None else _naming(lost))
        if not len(entries):
            return 0
        served = Served(self._db.read_txn(), self._frontends, self._backends)
        namespaces = namespaces_of(self._config.directories, pods=self._config.pods)
        closed = []
        for diag, met in translated(entries, namespaces, self._listed):
            if not served(met.way, met.socket.protocol):
                diag.destroy(met.socket)
                closed.append(met.raw_key)
        entries.drop(closed)
        return len(closed)

    # -- closed sockets --

    async def _prune_loop(self) -> None:
        while True:
            await anyio.sleep(self._config.prune_interval_s)  # nobody tells of a full LRU map
            if self._listed != self._config.protocols:
                await self._sweep(None)
            await anyio.to_thread.run_sync(self.prune)

    def prune(self) -> int:
        """Forget what closed sockets left, once the maps fill up; how many entries. Blocking.

        An entry goes when its socket was nowhere twice: one that is being connected is not listed
        yet. A full map would throw away the entries of open sockets as well.
        """
        entries = read_entries(self._maps)
        if len(entries) < self._config.prune_from * self._maps.v4.socket.max_entries:
            self._suspects = set()
            return 0
        if listed_protocols() != list(PROTOCOLS):
            return 0  # sockets that are not listed would be taken for closed ones
        left_out: list[Path] = []
        dead = dead_keys(entries, namespaces_of(self._config.directories, left_out=left_out))
        if left_out:
            log.warning("too many network namespaces to look for closed sockets")
            return 0
        gone = dead & self._suspects
        self._suspects = dead - gone
        entries.drop(gone)
        return len(gone)


def _can_destroy() -> bool:
    with SocketDiag() as diag:
        return diag.can_destroy()


def _everything(key: bytes, value: bytes) -> bool:
    return True


def _naming(lost: Iterable[L3n4Addr]) -> Callable[[bytes, bytes], bool]:
    """Entries with one of these addresses and ports in key or value, or with such a port in the
    value where the address is that of every node address."""
    places = {addr.packed_place for addr in lost}
    ports = {addr[AT_PORT] for addr in lost if addr.is_surrogate}

    def names_one(key: bytes, value: bytes) -> bool:
        dialled = frontend_of(value)
        return backend_of(key) in places or dialled in places or dialled[-2:] in ports

    return names_one


def _lost(
    backends: ChangeIterator[Backend], frontends: ChangeIterator[Frontend], txn: ReadTxn
) -> tuple[set[L3n4Addr], WatchSet]:
    """Return the addresses that went, and what to wait for."""
    backend_changes, more_backends = backends.next(txn)
    lost = {change.obj.address for change in backend_changes if change.deleted}
    frontend_changes, more_frontends = frontends.next(txn)
    lost |= {change.obj.address for change in frontend_changes if change.deleted}
    return lost, WatchSet(more_backends, more_frontends)

# SPDX-License-Identifier: Apache-2.0
"""Connectionless entries towards backends that are gone are deleted at once.

UDP has no end that a program could see: a client whose backend went would send to nobody for as
long as it keeps its port. `BackendAudit` therefore compares the entries of connection tracking with
the table `frontends` after every change of it, also when a frontend has no backend left at all. TCP
is left alone: its peers notice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from socket import IPPROTO_SCTP, IPPROTO_UDP
from typing import Final

import anyio
import anyio.to_thread

from bpf.maps import ct, lb, nat
from bpf.maps.lb_numbers import Scope
from bpf.maps.raw import SharedMap
from bpf.maps.text import PROTOCOL_NAMES
from cilia.datapath.conntrack import ConntrackMaps
from reconcilers.reconciler import Reconciler
from statedb import DB, Channel, ReadTxn, Table, wait_initialized
from tables.addressing import IP, L3n4Addr
from tables.loadbalancer.frontends import Frontend

__all__ = ["BackendAudit"]

#: Protocols that close no connection: their entries outlive the backend.
_CONNECTIONLESS: Final = (IPPROTO_UDP, IPPROTO_SCTP)

#: Of an entry of connection tracking: backend and frontend.
_LEADS_TO: Final = slice(ct.BACKEND_ID.start, ct.REV_NAT.stop)


class BackendAudit:
    """Deletes connectionless entries towards backends that their frontend no longer has."""

    #: Between two audits, at least this many times what the last one took.
    PAUSE_FACTOR: Final = 4

    def __init__(self, maps: ConntrackMaps, lb_maps: lb.LBMaps, frontends: Table[Frontend]) -> None:
        self._maps = maps
        self._lb_maps = lb_maps
        self._frontends = frontends
        #: Entries that were deleted since the start.
        self.deleted = 0

    def _revision(self, txn: ReadTxn) -> tuple[int, Channel]:
        _, changed = self._frontends.all_watch(txn)
        return self._frontends.revision(txn), changed

    async def run(self, db: DB, reconciler: Reconciler[Frontend]) -> None:
        """Audit after every change that is in the kernel, for ever.

        Not before all inputs were listed: until then a table says nothing about what is gone.
        """
        await wait_initialized(db, self._frontends)
        while True:
            revision, changed = db.look(self._revision)
            await reconciler.wait_until_reconciled(revision)
            start = time.monotonic()
            self.deleted += await anyio.to_thread.run_sync(db.look, self.step)
            await anyio.sleep(self.PAUSE_FACTOR * (time.monotonic() - start))
            await changed.wait()

    def step(self, txn: ReadTxn) -> int:
        """Look at every UDP entry once; how many were deleted."""
        deleted = 0
        for name, raw in self._maps.connections.items():
            if name.endswith("_any"):
                deleted += self._audit_connections(txn, raw)
        for raw in self._maps.translations.values():
            deleted += self._audit_translations(txn, raw)
        return deleted

    def _audit_connections(self, txn: ReadTxn, raw: SharedMap) -> int:
        """An entry that leads to another backend since the look stays."""
        known: dict[tuple[bytes, bytes], bool] = {}
        stale = []
        for key, value in raw.items():
            rev_nat = value[ct.REV_NAT]
            if any(rev_nat):
                decoded = ct.decode_key(key)
                pair = rev_nat, self._backend_of(decoded, value)
                if pair not in known:
                    known[pair] = self._serves(txn, rev_nat, decoded.proto, pair[1])
                if not known[pair]:
                    stale.append((key, value))
        return len(raw.delete_unchanged(stale, _LEADS_TO))

    def _audit_translations(self, txn: ReadTxn, raw: SharedMap) -> int:
        """Both entries of a flow go; its replies name the frontend, so they are what is asked. What
        another flow has made since the look stays.
        """
        stale: list[tuple[bytes, bytes]] = []
        for raw_key, raw_value in raw.items():
            key, value = nat.decode_key(raw_key), nat.decode_value(raw_value)
            if key.direction == nat.NatDirection.IN and value.rev_nat:
                backend = key.source + lb.encode_port(key.source_port)
                if not self._serves(txn, lb.encode_id(value.rev_nat), key.proto, backend):
                    stale.append((raw_key, raw_value))
        partners = {key: _partner(raw, key, value) for key, value in stale}
        size = nat.VALUE_SIZE[raw.name]
        deleted = raw.delete_unchanged(stale, nat.REV_NAT[size])
        left = [entry for key, _ in deleted if (entry := partners[key]) is not None]
        return len(deleted) + len(raw.delete_unchanged(left, nat.CREATED[size]))

    def _backend_of(self, key: ct.CtKey, value: bytes) -> bytes:
        """Address and port of the backend, packed; nothing for one that is gone altogether."""
        if key.direction != ct.Direction.SERVICE:
            return key.destination + lb.encode_port(key.destination_port)
        found = self._lb_maps.of(key.destination).backend.lookup(value[ct.BACKEND_ID])
        if found is None:
            return b""
        backend = lb.decode_backend(found)
        return backend.address + lb.encode_port(backend.port)

    def _serves(self, txn: ReadTxn, rev_nat: bytes, proto: int, backend: bytes) -> bool:
        """Return True if the frontend of the id has the backend.

        Also for a protocol that closes its connections: its entries are left alone.
        """
        if proto not in _CONNECTIONLESS:
            return True
        protocol = PROTOCOL_NAMES[proto]
        return any(
            chosen.address.packed_place == backend
            for fe in self._owners(txn, rev_nat, protocol, len(backend))
            for chosen in fe.backends
        )

    def _owners(self, txn: ReadTxn, rev_nat: bytes, protocol: str, size: int) -> Sequence[Frontend]:
        """The rows behind an id: its own, or those that have its address or a surrogate of it."""
        family = self._lb_maps.v4 if size == 6 else self._lb_maps.v6
        found = family.rev_nat.lookup(rev_nat) if size else None
        if found is None:
            return ()
        rows = list(self._rows_at(txn, lb.decode_rev_nat(found), protocol))
        number = lb.decode_id(rev_nat)
        exact = [fe for fe in rows if fe.id == number]
        return exact or rows

    def _rows_at(self, txn: ReadTxn, at: lb.RevNatValue, protocol: str) -> Iterator[Frontend]:
        for packed in (at.address, bytes(len(at.address))):
            for scope in Scope:
                addr = L3n4Addr.of(IP.from_packed(packed), at.port, protocol, scope)
                row = self._frontends.get(txn, addr)
                if row is not None:
                    yield row


def _partner(raw: SharedMap, key: bytes, value: bytes) -> tuple[bytes, bytes] | None:
    """Return the other entry of a flow as it is now."""
    other = nat.encode_key(nat.partner(nat.decode_key(key), nat.decode_value(value)))
    found = raw.lookup(other)
    return None if found is None else (other, found)

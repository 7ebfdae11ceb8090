# SPDX-License-Identifier: Apache-2.0
"""Connectionless entries towards backends that are gone are deleted at once.

UDP has no end that a program could see: a client whose backend went would send to nobody for as
long as it keeps its port. `BackendAudit` therefore compares the entries of connection tracking with
the table `frontends` after every change of it, also when a frontend has no backend left at all. TCP
is left alone: its peers notice.

A frontend that is gone may be made anew, with other numbers: entries that name it by a former
number stay until its backends are known. Nobody uses them meanwhile, and time ends them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from socket import IPPROTO_SCTP, IPPROTO_UDP
from typing import Final, NamedTuple

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

#: Size of an IPv4 address and port.
_PLACE4: Final = 6


class _Claim(NamedTuple):
    """The frontend and the backend that an entry of connection tracking or translation names."""

    #: Packed: of the frontend, at the time of the entry.
    number: bytes
    #: Address and port of the frontend; None in an entry of an earlier version.
    frontend: lb.RevNatValue | None
    #: Address and port, packed.
    backend: bytes
    proto: int


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
        known: dict[_Claim, bool] = {}
        stale = []
        for key, value in raw.items():
            claim = self._claim_of(ct.decode_key(key), value) if any(value[ct.REV_NAT]) else None
            if claim is None:
                continue
            if claim not in known:
                known[claim] = self._is_served(txn, claim)
            if not known[claim]:
                stale.append((key, value))
        return len(raw.delete_unchanged(stale, _LEADS_TO))

    def _audit_translations(self, txn: ReadTxn, raw: SharedMap) -> int:
        """Both entries of a flow go; its replies name the frontend, so they are what is asked. What
        another flow has made since the look stays.
        """
        stale: list[tuple[bytes, bytes]] = []
        returned: list[tuple[bytes, bytes]] = []
        for raw_key, raw_value in raw.items():
            key, value = nat.decode_key(raw_key), nat.decode_value(raw_value)
            if value.flags & nat.NatFlag.DSR:
                if not self._is_returned(txn, key, value):
                    returned.append((raw_key, raw_value))
            elif key.direction == nat.NatDirection.IN and value.rev_nat:
                backend = key.source + lb.encode_port(key.source_port)
                number, frontend = lb.encode_id(value.rev_nat), _place(value.asked)
                if not self._is_served(txn, _Claim(number, frontend, backend, key.proto)):
                    stale.append((raw_key, raw_value))
        partners = {key: _partner(raw, key, value) for key, value in stale}
        size = nat.VALUE_SIZE[raw.name]
        deleted = raw.delete_unchanged(stale, nat.REV_NAT[size])
        left = [entry for key, _ in deleted if (entry := partners[key]) is not None]
        left += returned
        return len(deleted) + len(raw.delete_unchanged(left, nat.CREATED[size]))

    def _is_returned(self, txn: ReadTxn, reply: nat.NatKey, value: nat.NatValue) -> bool:
        """Return True if the backend that the replies come from serves the frontend in whose name
        it answers, by direct return; or if nobody does, since that may be made anew.
        """
        if reply.proto not in _CONNECTIONLESS:
            return True
        frontend = lb.RevNatValue(value.address, value.port)
        rows = list(self._rows_at(txn, frontend, PROTOCOL_NAMES[reply.proto]))
        serving = [be.address.packed_place for fe in rows for be in fe.backends]
        return not serving or reply.source + lb.encode_port(reply.source_port) in serving

    def _claim_of(self, key: ct.CtKey, value: bytes) -> _Claim | None:
        """Return None if the number of the backend is gone: programs look for it by address."""
        backend: bytes | None = key.destination + lb.encode_port(key.destination_port)
        if key.direction == ct.Direction.SERVICE:
            backend = self._backend_at(key, value[ct.BACKEND_ID])
        if backend is None:
            return None
        frontend = _place(ct.decode_entry(value).frontend(key))
        return _Claim(value[ct.REV_NAT], frontend, backend, key.proto)

    def _backend_at(self, key: ct.CtKey, number: bytes) -> bytes | None:
        found = self._lb_maps.of(key.destination).backend.lookup(number)
        if found is None:
            return None
        backend = lb.decode_backend(found)
        return backend.address + lb.encode_port(backend.port)

    def _is_served(self, txn: ReadTxn, claim: _Claim) -> bool:
        """Return True if the frontend has the backend, or may be made anew with it.

        Also for a protocol that closes its connections: its entries are left alone.
        """
        if claim.proto not in _CONNECTIONLESS:
            return True
        current = self._owner(claim)
        frontend = claim.frontend or current
        if frontend is None:
            return False
        rows = list(self._rows_at(txn, frontend, PROTOCOL_NAMES[claim.proto]))
        if not any(fe.backends for fe in rows) and current is None:
            return True
        number = lb.decode_id(claim.number)
        exact = [fe for fe in rows if fe.id == number] if current else []
        return any(
            chosen.address.packed_place == claim.backend
            for fe in exact or rows
            for chosen in fe.backends
        )

    def _owner(self, claim: _Claim) -> lb.RevNatValue | None:
        """Return the frontend that has the number now; None if it is not the claim's."""
        family = self._lb_maps.v4 if len(claim.backend) == _PLACE4 else self._lb_maps.v6
        found = family.rev_nat.lookup(claim.number)
        if found is None:
            return None
        owner = lb.decode_rev_nat(found)
        named = claim.frontend
        if named is None or (not any(owner.address) and owner.port == named.port):
            return owner  # a node port, which stands for the addresses of all nodes
        return owner if owner == named else None

    def _rows_at(self, txn: ReadTxn, at: lb.RevNatValue, protocol: str) -> Iterator[Frontend]:
        for packed in (at.address, bytes(len(at.address))):
            for scope in Scope:
                addr = L3n4Addr.of(IP.from_packed(packed), at.port, protocol, scope)
                row = self._frontends.get(txn, addr)
                if row is not None:
                    yield row


def _place(found: tuple[bytes, int] | None) -> lb.RevNatValue | None:
    return None if found is None else lb.RevNatValue(*found)


def _partner(raw: SharedMap, key: bytes, value: bytes) -> tuple[bytes, bytes] | None:
    """Return the other entry of a flow as it is now."""
    other = nat.encode_key(nat.partner(nat.decode_key(key), nat.decode_value(value)))
    found = raw.lookup(other)
    return None if found is None else (other, found)

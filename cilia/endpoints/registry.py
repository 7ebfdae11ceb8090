# SPDX-License-Identifier: Apache-2.0
"""The rows of endpoints as requests need them: numbers, addresses, and whether all is in force."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Final

import anyio
import msgspec

from cilia.endpoints.controller import EndpointsController
from cilia.identity.ipcache.known import KnownAddresses
from cilia.ipam.allocator import AddressTaken, Allocator, NoPool
from cilia.ipam.pools import NodePools
from statedb import DB, ReadTxn, RWTable, WatchSet, wait_initialized
from tables.addressing import IP, Prefix
from tables.endpoints.endpoints import (
    ADDRESS,
    ATTACHMENT,
    DEVICE,
    ID_MAX,
    ID_MIN,
    Attachment,
    Endpoint,
    EndpointState,
)
from tables.ipam.ip_allocations import IPAllocation

__all__ = ["NoNumber", "Registry"]

NUMBERS: Final = ID_MAX - ID_MIN + 1
DELETED: Final = "it was deleted meanwhile"


class NoNumber(Exception):
    """Every number of an endpoint is taken."""


class Registry:
    """Writes ``endpoints`` and ``ip-allocations`` for the plugin."""

    def __init__(
        self,
        db: DB,
        endpoints: RWTable[Endpoint],
        allocations: RWTable[IPAllocation],
        allocator: Allocator,
        pools: NodePools,
        controller: EndpointsController,
        addresses: KnownAddresses,
    ) -> None:
        self._db = db
        self._endpoints = endpoints
        self._allocations = allocations
        self._allocator = allocator
        self._pools = pools
        self._controller = controller
        self._addresses = addresses
        self._last = 0

    # -- a new one --

    def allocate(self, ep: Endpoint) -> Endpoint:
        """Return the endpoint with a number and addresses of its own, and with its identity if one
        is there, so that its file and its entry in the map are written once.

        Raises: NoNumber, NoPool, PoolExhausted.
        """
        with self._db.write_txn(self._endpoints, self._allocations) as wtxn:
            pools = self._pools(wtxn)
            if not pools and (refused := self._pools.refusals(wtxn)):
                raise NoPool(", ".join(refused))
            number = self._free_number(wtxn)
            ipv4, ipv6 = self._allocator.allocate(wtxn, pools, ep.owner, number)
            ep = self._controller.with_identity(wtxn, ep)
        self._last = number
        return msgspec.structs.replace(ep, id=number, ipv4=ipv4, ipv6=ipv6)

    def adopt(self, ep: Endpoint) -> Endpoint:
        """Return an endpoint that has addresses of another plugin, with a number, and with its
        identity if one is there.

        Raises: NoNumber; AddressTaken, and then nothing is taken.
        """
        with self._db.write_txn(self._endpoints, self._allocations) as wtxn:
            number = self._free_number(wtxn)
            for ip in ep.addresses:
                held = self._allocations.get(wtxn, ip)
                if held is not None and not held.free_at:
                    raise AddressTaken(f"{ip} is in use by {held.owner}")
            for ip in ep.addresses:
                self._allocator.claim(wtxn, ip, ep.owner, number, is_external=True)
            ep = self._controller.with_identity(wtxn, ep)
        self._last = number
        return msgspec.structs.replace(ep, id=number)

    def _free_number(self, txn: ReadTxn) -> int:
        taken = {row.endpoint_id for row in self._allocations.all(txn)}
        for step in range(NUMBERS):
            number = ID_MIN + (self._last + step) % NUMBERS
            if number not in taken and self._endpoints.get(txn, number) is None:
                return number
        raise NoNumber(f"all {NUMBERS} numbers of endpoints are taken")

    def insert(self, ep: Endpoint) -> None:
        """Make the row of an endpoint whose devices are there."""
        with self._db.write_txn(self._endpoints) as wtxn:
            self._endpoints.insert(wtxn, ep)

    def took(self, ep: Endpoint, phases: Mapping[str, float]) -> None:
        """Note how long each phase took."""
        with self._db.write_txn(self._endpoints) as wtxn:
            row = self._endpoints.get(wtxn, ep.id)
            if row is not None:
                self._endpoints.insert(wtxn, msgspec.structs.replace(row, phases=phases))

    async def wait_ready(self, number: int, wait_s: float) -> str:
        """Wait until an endpoint is ready, and the datapath knows its addresses by its identity;
        return what is missing after `wait_s`, or nothing.
        """
        with anyio.move_on_after(wait_s):
            while True:
                watches = WatchSet()
                missing = self._db.look(partial(self._lacks, number, watches))
                if missing in ("", DELETED):
                    return missing
                await watches.wait()
        return self._db.look(partial(self._lacks, number, WatchSet()))

    def _lacks(self, number: int, watches: WatchSet, txn: ReadTxn) -> str:
        ep, changed = self._endpoints.get_watch(txn, number)
        watches.add(changed)
        if ep is None:
            return DELETED
        if ep.state is not EndpointState.READY:
            return self._controller.waits_for(txn, ep) or f"its state is {ep.state}"
        return self._addresses.lacks(txn, ep.addresses, ep.identity, watches)

    # -- one that is there --

    def by_device(self, device: str) -> Endpoint | None:
        return self._db.look(lambda txn: self._by_device(txn, device))

    def _by_device(self, txn: ReadTxn, device: str) -> Endpoint | None:
        return next(iter(self._endpoints.list(txn, device, DEVICE)), None)

    def by_attachment(self, attachment: Attachment) -> Endpoint | None:
        """Return the endpoint that a runtime knows by this name."""
        return self._db.look(
            lambda txn: next(iter(self._endpoints.list(txn, str(attachment), ATTACHMENT)), None)
        )

    def by_address(self, ip: IP) -> list[Endpoint]:
        return self._db.look(lambda txn: list(self._endpoints.list(txn, ip, ADDRESS)))

    def of_network(self, network: str) -> list[Endpoint]:
        """Return the endpoints that were made for a network."""
        return self._db.look(
            lambda txn: [ep for ep in self._endpoints.all(txn) if ep.attachment.network == network]
        )

    def waits_for(self, ep: Endpoint) -> str:
        """Return what is not in force of an endpoint, or nothing."""

        def read(txn: ReadTxn) -> str:
            missing = self._controller.waits_for(txn, ep)
            return missing or self._addresses.lacks(txn, ep.addresses, ep.identity)

        return self._db.look(read)

    def pools_of(self, ep: Endpoint) -> list[Prefix]:
        """Return the pools that its addresses are of, IPv4 first."""

        def read(txn: ReadTxn) -> list[Prefix]:
            pools = self._pools(txn)
            found = ([pool for pool in pools if pool.contains(ip)][:1] for ip in ep.addresses)
            return [pool for pools in found for pool in pools]

        return self._db.look(read)

    def cannot_allocate(self) -> str:
        """Return why no endpoint could be made now, or nothing."""

        def read(txn: ReadTxn) -> str:
            pools = self._pools(txn)
            refused = "" if pools else ", ".join(self._pools.refusals(txn))
            return refused or self._allocator.lacks(txn, pools)

        return self._db.look(read)

    # -- its end --

    async def wait_restored(self) -> None:
        """Wait until the endpoints of the run before are known."""
        await wait_initialized(self._db, self._endpoints)

    def disconnect(self, device: str) -> Endpoint | None:
        """Mark the endpoint of a device as going; None if there is none."""
        with self._db.write_txn(self._endpoints) as wtxn:
            ep = self._by_device(wtxn, device)
            if ep is None:
                return None
            gone = ep.moved(EndpointState.DISCONNECTING, time.time(), "it is being deleted")
            self._endpoints.insert(wtxn, gone)
        return gone

    def remove(self, ep: Endpoint) -> None:
        """Remove the row, and let the addresses rest."""
        with self._db.write_txn(self._endpoints, self._allocations) as wtxn:
            row = self._endpoints.get(wtxn, ep.id)
            if row is not None and row.device == ep.device:
                self._endpoints.delete(wtxn, row)
            for ip in ep.addresses:
                self._allocator.release(wtxn, ip, ep.id)

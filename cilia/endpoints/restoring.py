# SPDX-License-Identifier: Apache-2.0
"""Endpoints of the run before, from their files and from the kernel.

A file and a device: the endpoint goes on, with the identity that the pinned map has for the device,
and with its addresses if somebody changed the file; the file says which labels the number is of. A
file without a device: a request that never ended, or a container that went while no agent ran; the
file goes and the addresses rest. A device without a file: somebody took the file, and the workload
still talks; the pinned map says what it has. Only a device that neither knows is left of a request
that never ended, and goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import anyio.to_thread
import msgspec
import structlog

from bpf.maps import endpoints as codec
from bpf.maps.raw import RawMap
from cilia.endpoints import chained, links
from cilia.endpoints.saved import SavedEndpoints
from cilia.ipam.allocator import AddressTaken, Allocator
from cilia.linux.netlink import Netlink
from cilia.linux.rtnl import LinkMessage
from statedb import DB, RWTable, WriteTxn
from tables.addressing import IP
from tables.endpoints.endpoints import ID_MIN, Attachment, Endpoint, EndpointState
from tables.ipam.ip_allocations import IPAllocation

__all__ = ["Restoring"]

log = structlog.get_logger("endpoints")


class Restoring:
    """`run` is called once, before anything is given out."""

    def __init__(
        self,
        db: DB,
        endpoints: RWTable[Endpoint],
        allocations: RWTable[IPAllocation],
        allocator: Allocator,
        saved: SavedEndpoints,
        netlink: Netlink,
        raw: RawMap,
    ) -> None:
        self._db = db
        self._endpoints = endpoints
        self._allocations = allocations
        self._allocator = allocator
        self._saved = saved
        self._netlink = netlink
        self._raw = raw
        with db.write_txn(endpoints, allocations) as wtxn:
            self._initialized = [
                table.register_initializer(wtxn, "restore") for table in (endpoints, allocations)
            ]

    async def run(self) -> int:
        """Make the rows; return how many endpoints go on. Raises: OSError."""
        return await anyio.to_thread.run_sync(self._run)

    def _run(self) -> int:
        self._saved.make_directory()
        pairs = links.endpoint_devices(self._netlink)
        files = {ep.device: ep for ep in self._saved.read()}
        values = self._values()
        found = [
            _as_in_force(
                msgspec.structs.replace(ep, index=pairs[name].index), values.get(pairs[name].index)
            )
            for name, ep in files.items()
            if name in pairs
        ]
        missing = [pair for name, pair in pairs.items() if name not in files]
        found += _from_kernel(missing, values, {ep.id for ep in found})
        with self._db.write_txn(self._endpoints, self._allocations) as wtxn:
            for ep in found:
                self._restore(wtxn, ep)
            for ep in files.values():
                if ep.device not in pairs:
                    self._rest(wtxn, ep)
            for done in self._initialized:
                done(wtxn)
        for ep in files.values():
            if ep.device not in pairs:
                self._saved.remove(ep.id)
        for ep in found:
            if files.get(ep.device) != msgspec.structs.replace(ep, index=0):
                self._saved.write(ep)
        kept = {ep.device for ep in found}
        for name in pairs:
            if name not in kept:
                log.warning("a device is left of a request that never ended", device=name)
                chained.let_go(self._netlink, name)
        if found:
            log.info("endpoints of the run before go on", endpoints=len(found))
        return len(found)

    # -- one endpoint --

    def _restore(self, wtxn: WriteTxn, ep: Endpoint) -> None:
        for ip in ep.addresses:
            try:
                self._allocator.claim(wtxn, ip, ep.owner, ep.id, ep.is_chained)
            except AddressTaken as error:
                log.error("two endpoints have one address", device=ep.device, error=str(error))
        self._endpoints.insert(wtxn, ep)

    def _rest(self, wtxn: WriteTxn, ep: Endpoint) -> None:
        """Keep the addresses of an endpoint that is gone from being given out at once."""
        for ip in ep.addresses:
            if self._allocations.get(wtxn, ip) is None:
                self._allocator.claim(wtxn, ip, ep.pod_name, ep.id)
                self._allocator.release(wtxn, ip, ep.id)

    # -- what the kernel knows --

    def _values(self) -> Mapping[int, codec.EndpointValue]:
        return {
            codec.decode_key(key): codec.decode_value(value) for key, value in self._raw.items()
        }


def _from_kernel(
    pairs: Iterable[LinkMessage], values: Mapping[int, codec.EndpointValue], taken: set[int]
) -> list[Endpoint]:
    found = []
    for pair in pairs:
        value = values.get(pair.index)
        if value is None or value.id < ID_MIN or value.id in taken:
            continue
        log.warning("the file of an endpoint is gone, its device is not", device=pair.name)
        found.append(_from_value(pair, value))
    return found


def _as_in_force(ep: Endpoint, value: codec.EndpointValue | None) -> Endpoint:
    """Return the endpoint with what programs know of its device, where they know it."""
    if value is None:
        return ep
    row = _with_value(ep, value)
    if ep.pod and row.identity != ep.identity:
        row = msgspec.structs.replace(row, labels=())  # they were those of another number
    if row != msgspec.structs.replace(ep, identity=row.identity, labels=row.labels):
        log.error("the file of an endpoint is not as it was written", device=ep.device, id=ep.id)
    return row


def _with_value(ep: Endpoint, value: codec.EndpointValue) -> Endpoint:
    return msgspec.structs.replace(
        ep,
        id=value.id,
        identity=value.identity,
        ipv4=IP.from_packed(value.ipv4) if value.ipv4 else None,
        ipv6=IP.from_packed(value.ipv6) if value.ipv6 else None,
        mac=value.mac,
        node_mac=value.node_mac,
        is_chained=bool(value.flags & codec.CHAINED),
    )


def _from_value(pair: LinkMessage, value: codec.EndpointValue) -> Endpoint:
    """Its attachment is not known; requests find it by the name of its device."""
    blank = Endpoint(
        id=value.id,
        attachment=Attachment("", "", ""),
        device=pair.name,
        index=pair.index,
        node_mac=value.node_mac,
        mac=value.mac,
        created_at=time.time(),
        state=EndpointState.RESTORING,
    )
    return _with_value(blank, value)

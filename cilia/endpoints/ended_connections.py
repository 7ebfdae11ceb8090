# SPDX-License-Identifier: Apache-2.0
"""Tracked connections of pods that are gone: they are closed, so that the next owner of an address
has flows of its own.

They stay for the time of a connection that is over, as do their ports: the other side may still
send. Deleting them at once would let its packets open flows.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import msgspec

from bpf.errors import NotFound
from bpf.maps import ct
from bpf.maps.raw import EXIST, RawMap
from cilia.ipam.ended_addresses import follow_ended_addresses
from statedb import DB, Table
from tables.addressing import IP
from tables.ipam.ip_allocations import IPAllocation

__all__ = ["EndedConnections"]


class EndedConnections:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        allocations: Table[IPAllocation],
        connections: Mapping[str, RawMap],
        closed_s: int,
    ) -> None:
        """`closed_s`: how long a connection stays that is over."""
        self._db = db
        self._allocations = allocations
        self._maps = connections
        self._closed_s = closed_s

    async def run(self) -> None:
        """Follow the addresses for ever."""
        await follow_ended_addresses(self._db, self._allocations, self.end)

    def end(self, addresses: Collection[IP]) -> int:
        """Close all connections of these addresses; return how many. Blocks for a look at the
        maps: an entry that is none of theirs costs no more than a comparison.
        """
        packed = {ip.packed for ip in addresses}
        ended = 0
        for raw in self._maps.values():
            theirs = [item for item in raw.items() if not packed.isdisjoint(ct.ends(item[0]))]
            ended += sum(self._close(raw, key, value) for key, value in theirs)
        return ended

    def _close(self, raw: RawMap, key: bytes, value: bytes) -> bool:
        entry = ct.decode_entry(value)
        until_s = int(time.monotonic()) + self._closed_s
        closed = msgspec.structs.replace(
            entry,
            flags=entry.flags | ct.CLOSING,
            tcp_flags=entry.tcp_flags | ct.TCP_RST,
            reply_tcp_flags=entry.reply_tcp_flags | ct.TCP_RST,
            expires_s=min(entry.expires_s, until_s),
        )
        if closed == entry:
            return False
        try:
            raw.update(key, ct.encode_entry(closed), EXIST)
        except NotFound:
            return False
        return True

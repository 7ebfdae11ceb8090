# SPDX-License-Identifier: Apache-2.0
"""Flows of pods that are gone: their addresses come to other pods, which must not get the replies.

The way there of each flow goes at once. The way back stays closed for the time of a connection that
is over, so that nobody has its port meanwhile: the world may still answer the one before.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import msgspec

from bpf.errors import NotFound
from bpf.maps import nat
from bpf.maps.nat import NatDirection, NatFlag
from bpf.maps.raw import EXIST, RawMap
from cilia.ipam.ended_addresses import follow_ended_addresses
from statedb import DB, Table
from tables.addressing import IP
from tables.ipam.ip_allocations import IPAllocation

__all__ = ["EndedFlows"]


class EndedFlows:
    """One task calls `run`. An address rests for longer than this takes (`cilia.ipam`)."""

    def __init__(
        self,
        db: DB,
        allocations: Table[IPAllocation],
        translations: Mapping[str, RawMap],
        closed_s: int,
    ) -> None:
        """`closed_s`: how long a port stays with a connection that is over."""
        self._db = db
        self._allocations = allocations
        self._maps = translations
        self._closed_s = closed_s

    async def run(self) -> None:
        """Follow the addresses for ever."""
        await follow_ended_addresses(self._db, self._allocations, self.end)

    def end(self, addresses: Collection[IP]) -> int:
        """End all flows of these addresses; return how many. Blocks for a look at the maps."""
        packed = {ip.packed for ip in addresses}
        ended = 0
        for raw in self._maps.values():
            back = []
            for key, value in nat.translations(raw):
                if key.direction == NatDirection.OUT and key.source in packed:
                    _delete(raw, key)
                elif key.direction == NatDirection.IN and value.address in packed:
                    back.append(key)
            ended += sum(self._close(raw, key, packed) for key in back)
        return ended

    def _close(self, raw: RawMap, key: nat.NatKey, packed: Collection[bytes]) -> bool:
        """Close a way back, if it is still that of one of these addresses and of no frontend."""
        encoded = nat.encode_key(key)
        found = raw.lookup(encoded)
        if found is None:
            return False
        value = nat.decode_value(found)
        if value.rev_nat or value.address not in packed or value.flags & NatFlag.ENDED:
            return False
        closed = msgspec.structs.replace(
            value,
            flags=value.flags | NatFlag.ENDED | NatFlag.CLOSING,
            expires_s=int(time.monotonic()) + self._closed_s,
        )
        try:
            raw.update(encoded, nat.encode_value(closed), EXIST)
        except NotFound:
            return False
        return True


def _delete(raw: RawMap, key: nat.NatKey) -> None:
    try:
        raw.delete(nat.encode_key(key))
    except NotFound:
        return

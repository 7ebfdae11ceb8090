# SPDX-License-Identifier: Apache-2.0
"""Addresses out of the pools of this node: each to one owner, and freed ones rest for a while.

A freed address is given out again after 30 seconds at the earliest, and not before the datapath has
forgotten whose it was (`quarantine.py`).

The table ``ip-allocations`` is the state; who restores endpoints claims theirs before anything is
given out. The next address follows the one that was given last (as the field does), so one that
was freed comes again as late as possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from statedb import ReadTxn, RWTable, WriteTxn
from tables.addressing import IP, Prefix
from tables.ipam.ip_allocations import IPAllocation

__all__ = ["QUARANTINE_S", "ROUTER", "AddressTaken", "Allocator", "NoPool", "PoolExhausted"]

#: Seconds that a freed address is not given out again.
QUARANTINE_S: Final = 30.0

NO_POOL: Final = "this node has no prefix for its pods yet"

#: Owner of the address that is the gateway of all pods.
ROUTER: Final = "router"


class NoPool(Exception):
    """This node has no pool of addresses."""


class PoolExhausted(Exception):
    """All addresses of a family are taken or rest."""


class AddressTaken(Exception):
    """An address has another owner."""


class Allocator:
    """All methods run inside the caller's transaction over ``ip-allocations``."""

    def __init__(
        self,
        table: RWTable[IPAllocation],
        *,
        quarantine_s: float = QUARANTINE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._quarantine_s = quarantine_s
        self._clock = clock
        # What was given last, by pool.
        self._last: dict[Prefix, int] = {}

    def allocate(
        self, wtxn: WriteTxn, pools: Sequence[Prefix], owner: str, endpoint_id: int = 0
    ) -> tuple[IP | None, IP | None]:
        """Return an address of each family that there is a pool of.

        Raises: NoPool; PoolExhausted, and then nothing is taken.
        """
        if not pools:
            raise NoPool(NO_POOL)
        self._release_rested(wtxn)
        found: list[IP | None] = []
        for ipv6 in (False, True):
            candidates = [pool for pool in pools if pool.is_ipv6 is ipv6]
            found.append(self._first(wtxn, candidates, owner, endpoint_id) if candidates else None)
            if candidates and found[-1] is None:
                for ip in filter(None, found):
                    self._table.delete_key(wtxn, ip)
                raise PoolExhausted(_exhausted(self._table, wtxn, candidates))
        return found[0], found[1]

    def lacks(self, txn: ReadTxn, pools: Sequence[Prefix]) -> str:
        """Return why `allocate` would fail now, in a sentence, or nothing."""
        if not pools:
            return NO_POOL
        now = self._clock()
        for ipv6 in (False, True):
            candidates = [pool for pool in pools if pool.is_ipv6 is ipv6]
            rows = _rows_of(self._table, txn, candidates)
            taken = sum(not _has_rested(row, now) for row in rows)
            if candidates and taken >= sum(usable(pool)[1] for pool in candidates):
                return _exhausted(self._table, txn, candidates)
        return ""

    def claim(
        self,
        wtxn: WriteTxn,
        ip: IP,
        owner: str,
        endpoint_id: int = 0,
        is_external: bool = False,
    ) -> None:
        """Take one address, by name; nothing is written for its owner. `is_external`: another
        plugin gave it.

        Raises: AddressTaken if another one has it.
        """
        held = self._table.get(wtxn, ip)
        if held is None or held.free_at:
            self._give(wtxn, ip, owner, endpoint_id, is_external)
        elif (held.owner, held.endpoint_id) != (owner, endpoint_id):
            raise AddressTaken(f"{ip} is in use by {held.owner}")

    def release(self, wtxn: WriteTxn, ip: IP, endpoint_id: int = 0) -> None:
        """Let an address rest. Nothing happens if it is not this endpoint's."""
        held = self._table.get(wtxn, ip)
        if held is None or held.free_at or held.endpoint_id != endpoint_id:
            return
        free_at = self._clock() + self._quarantine_s
        row = msgspec.structs.replace(held, free_at=free_at, since=time.time(), in_ipcache=True)
        self._table.insert(wtxn, row)

    def forgotten(self, wtxn: WriteTxn, freed: IPAllocation) -> None:
        """Note that the datapath has nobody behind a freed address, if it was not taken since."""
        if self._table.get(wtxn, freed.ip) == freed:
            self._table.insert(wtxn, msgspec.structs.replace(freed, in_ipcache=False))

    def _release_rested(self, wtxn: WriteTxn) -> None:
        now = self._clock()
        for row in [row for row in self._table.all(wtxn) if _has_rested(row, now)]:
            self._table.delete(wtxn, row)

    def _first(
        self, wtxn: WriteTxn, pools: Sequence[Prefix], owner: str, endpoint_id: int
    ) -> IP | None:
        for pool in pools:
            ip = self._free(wtxn, pool)
            if ip is not None:
                self._last[pool] = int.from_bytes(ip, "big")
                self._give(wtxn, ip, owner, endpoint_id)
                return ip
        return None

    def _free(self, wtxn: WriteTxn, pool: Prefix) -> IP | None:
        """The next free one behind the last; each step more is an address that is taken."""
        first, count = usable(pool)
        start = self._last.get(pool, first - 1) + 1 - first
        for step in range(min(count, self._table.num_objects(wtxn) + 1)):
            ip = IP((first + (start + step) % count).to_bytes(16, "big"))
            if self._table.get(wtxn, ip) is None:
                return ip
        return None

    def _give(
        self, wtxn: WriteTxn, ip: IP, owner: str, endpoint_id: int, is_external: bool = False
    ) -> None:
        row = IPAllocation(
            ip=ip,
            owner=owner,
            endpoint_id=endpoint_id,
            since=time.time(),
            is_external=is_external,
        )
        self._table.insert(wtxn, row)


def _has_rested(row: IPAllocation, now: float) -> bool:
    return 0 < row.free_at <= now and not row.in_ipcache


def usable(pool: Prefix) -> tuple[int, int]:
    """Return the first address of a pool that may be given out, as a number, and how many there
    are: not the first one of the prefix, and of IPv4 not the last.
    """
    size = 1 << ((128 if pool.is_ipv6 else 32) - pool.length)
    return int.from_bytes(pool.ip, "big") + 1, size - (1 if pool.is_ipv6 else 2)


def router_of(pool: Prefix) -> IP:
    """Return the gateway of a pool's pods: its first usable address."""
    return IP(usable(pool)[0].to_bytes(16, "big"))


def _rows_of(
    table: RWTable[IPAllocation], txn: ReadTxn, pools: Sequence[Prefix]
) -> list[IPAllocation]:
    return [row for row in table.all(txn) if any(pool.contains(row.ip) for pool in pools)]


def _exhausted(table: RWTable[IPAllocation], txn: ReadTxn, pools: Sequence[Prefix]) -> str:
    rows = _rows_of(table, txn, pools)
    rest = sum(1 for row in rows if row.free_at)
    names = ", ".join(map(str, pools))
    return (
        f"no address of {names} is free: {len(rows) - rest} in use, {rest} of deleted pods rest for"
        f" up to {QUARANTINE_S:.0f} s; give the node a larger prefix, or have fewer pods on it"
    )

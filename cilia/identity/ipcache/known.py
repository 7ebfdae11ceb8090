# SPDX-License-Identifier: Apache-2.0
"""Whether the datapath knows addresses by an identity: what table and map say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bpf.maps import ipcache as codec
from bpf.maps.raw import RawMap
from cilia.identity.ipcache.claims import host_prefix
from statedb import ReadTxn, StatusKind, Table, WatchSet
from tables.addressing import IP
from tables.identity.ipcache import IPCacheEntry

__all__ = ["KnownAddresses"]


class KnownAddresses:
    """Addresses of families that are off are known by nobody, and none is missing."""

    def __init__(self, table: Table[IPCacheEntry], raw: RawMap, families: frozenset[bool]) -> None:
        """`families`: those that are enabled, True for IPv6, False for IPv4."""
        self._table = table
        self._raw = raw
        self._families = families

    def lacks(
        self, txn: ReadTxn, ips: Iterable[IP], identity: int, watches: WatchSet | None = None
    ) -> str:
        """Return which address is not in force with the identity yet, in a sentence, or nothing.

        `watches` gets what closes when this may have changed.
        """
        lacking = ""
        for ip in self._enabled(ips):
            row, changed = self._table.get_watch(txn, (0, host_prefix(ip)))
            if watches is not None:
                watches.add(changed)
            lacking = lacking or self._row_lacks(txn, ip, row, identity)
        return lacking

    def _row_lacks(self, txn: ReadTxn, ip: IP, row: IPCacheEntry | None, identity: int) -> str:
        if row is None:
            return f"nobody has said yet which identity is behind {ip}"
        claim = row.in_force
        if claim.identity != identity:
            return f"{claim.owner} says that identity {claim.identity} is behind {ip}"
        status = row.status
        if status.kind is StatusKind.DONE:
            return ""
        said = f"failed: {status.error}" if status.error else f"is {status}"
        waiting = ", ".join(self._table.pending_initializers(txn))
        until = f" until these are known: {waiting}" if waiting else ""
        return f"the identity behind {ip} {said}{until}"

    def differences(self, ips: Iterable[IP], identity: int) -> Iterator[str]:
        """Yield what the kernel's map has otherwise, a sentence each."""
        for ip in self._enabled(ips):
            found = self._raw.lookup(codec.encode_key(codec.IPCacheKey(ip.packed, ip.bits)))
            # The longest prefix that covers the address.
            number = codec.decode_value(found).identity if found is not None else 0
            if number != identity:
                yield f"{self._raw.name} has identity {number} behind {ip}, not {identity}"

    def _enabled(self, ips: Iterable[IP]) -> Iterator[IP]:
        return (ip for ip in ips if ip.is_ipv6 in self._families)

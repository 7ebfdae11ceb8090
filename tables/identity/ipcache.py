# SPDX-License-Identifier: Apache-2.0
"""``ipcache``: which identity is behind which prefix, and who says so.

::

    10.207.0.3/32   endpoint 7 (local): 259          in force
                    node two (k8s): remote-node      shadowed: it counts again when the first goes

A row a prefix. Each writer has a claim of its own in it; they are in the order of their sources
(`tables.sources`), and of one source the one that began last is first, else the newest. The first
claim is what is in force. Writers go through `cilia/identity/ipcache/writer.py`; the reconciler
(`reconcilers/identity/ipcache.py`) writes what is in force to the map ``cilia_ipcache`` and gives
back ``status``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.lpm import LpmIndex, LpmKey
from statedb.status import pending
from tables.addressing import IP, Prefix
from tables.identity.identities import RESERVED
from tables.sources import Source
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "ipcache"

CLUSTER_ID_MAX: Final = 65_535
#: Bits of the cluster's id in front of an address.
_CLUSTER_BITS: Final = 16

#: Cluster (0: this one) and prefix.
IPCacheKey = tuple[int, Prefix]


class Claim(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What one writer says about a prefix."""

    source: Source
    # Which of the writers of this source, for people too: `endpoint 7`.
    owner: str
    identity: int
    # The node behind which the prefix is; None: this one, or none.
    host: IP | None = None
    encrypt_key: int = 0
    # When its writer says that it began, seconds since the epoch; 0: unknown.
    since: float = 0.0
    namespace: str = ""
    pod: str = ""


class IPCacheEntry(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    prefix: Prefix
    cluster_id: int = 0
    # Never empty; the first is in force.
    claims: tuple[Claim, ...]
    # Written by the reconciler, and asked for anew only when what is in force changes.
    status: Status = msgspec.field(default_factory=pending)

    @property
    def in_force(self) -> Claim:
        return self.claims[0]


def ipcache_key(row: IPCacheEntry) -> IPCacheKey:
    return row.cluster_id, row.prefix


def prefix_text(row: IPCacheEntry) -> str:
    """``10.0.0.0/8``, of another cluster ``10.0.0.0/8@3``."""
    return f"{row.prefix}@{row.cluster_id}" if row.cluster_id else str(row.prefix)


def parse_key(text: str) -> IPCacheKey:
    """Read ``ADDRESS[/LENGTH][@CLUSTER]``. Raises: ValueError."""
    prefix, at, cluster = text.partition("@")
    if at and not (cluster.isascii() and cluster.isdigit() and len(cluster) <= 5):
        raise ValueError(f"{cluster!r} is no id of a cluster")
    cluster_id = int(cluster or 0)
    if cluster_id > CLUSTER_ID_MAX:
        raise ValueError(f"{cluster_id} is no id of a cluster: they end at {CLUSTER_ID_MAX}")
    return cluster_id, Prefix.parse(prefix)


def _lpm_key(key: IPCacheKey) -> LpmKey:
    """Return a key whose bits begin with the cluster's id: prefixes of others cover nothing."""
    cluster_id, prefix = key
    address = prefix.packed
    bits = 8 * len(address)
    value = cluster_id << bits | int.from_bytes(address, "big")
    return _CLUSTER_BITS + bits, value, _CLUSTER_BITS + prefix.length


PREFIX: Final = Index("prefix", key=ipcache_key, parse=parse_key)
#: All that cover an address, the longest first.
COVERING: Final = LpmIndex("covering", ipcache_key, encode=_lpm_key, parse=parse_key)


def _claim_json(claim: Claim) -> dict[str, Any]:
    return {
        "Source": claim.source.value or "unspec",
        "Owner": claim.owner,
        "Identity": claim.identity,
        "HostIP": str(claim.host or ""),
        "EncryptKey": claim.encrypt_key,
        "Namespace": claim.namespace,
        "Pod": claim.pod,
    }


def to_json(row: IPCacheEntry) -> dict[str, Any]:
    return {
        "Prefix": str(row.prefix),
        "ClusterID": row.cluster_id,
        **_claim_json(row.in_force),
        "Shadowed": [_claim_json(claim) for claim in row.claims[1:]],
        "Status": str(row.status.kind),
        "Error": row.status.error,
    }


def _identity_cell(row: IPCacheEntry) -> str:
    number = row.in_force.identity
    return f"{number} ({RESERVED[number]})" if number in RESERVED else str(number)


COLUMNS: Final = (
    Column("Prefix", prefix_text),
    Column("Identity", _identity_cell),
    Column("Source", lambda row: row.in_force.source.value or "unspec"),
    Column("Owner", lambda row: row.in_force.owner),
    Column("Host", lambda row: str(row.in_force.host or "")),
    Column("Shadowed", lambda row: ", ".join(claim.owner for claim in row.claims[1:])),
    *STATUS_COLUMNS,
)


def new_ipcache_table(db: DB) -> RWTable[IPCacheEntry]:
    """Registers ``ipcache`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        PREFIX,
        COVERING,
        columns=COLUMNS,
        row_type=IPCacheEntry,
        to_json=to_json,
    )

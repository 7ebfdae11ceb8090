# SPDX-License-Identifier: Apache-2.0
"""Claims on prefixes: each writer makes and takes away its own, and the best one is in force.

A claim that goes lets the next one count again. Nobody takes away a claim of another source or
owner: an address that was given anew is its new owner's, in whatever order its owners are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from statedb import RWTable, WriteTxn
from statedb.status import pending
from tables.addressing import Prefix
from tables.identity.ipcache import Claim, IPCacheEntry
from tables.sources import PRIORITY, Source

__all__ = ["Claims", "IPCacheWriter"]

#: What one owner claims.
Claims = Mapping[Prefix, Claim]


class IPCacheWriter:
    """Writes ``ipcache`` inside the caller's transaction."""

    def __init__(self, table: RWTable[IPCacheEntry]) -> None:
        self.table = table

    def upsert(self, wtxn: WriteTxn, prefix: Prefix, claim: Claim, cluster_id: int = 0) -> None:
        """Make a claim, or put it in the place of the one of its source and owner."""
        row = self.table.get(wtxn, (cluster_id, prefix))
        if row is None:
            row = IPCacheEntry(prefix=prefix, cluster_id=cluster_id, claims=(claim,))
            self.table.insert(wtxn, row)
            return
        self._put(wtxn, row, _with(row.claims, claim))

    def delete(
        self, wtxn: WriteTxn, prefix: Prefix, source: Source, owner: str, cluster_id: int = 0
    ) -> None:
        """Take away the claim of a source and owner; nothing happens if there is none."""
        row = self.table.get(wtxn, (cluster_id, prefix))
        if row is None:
            return
        claims = tuple(
            claim for claim in row.claims if (claim.source, claim.owner) != (source, owner)
        )
        if claims:
            self._put(wtxn, row, claims)
        else:
            self.table.delete(wtxn, row)

    def exchange(self, wtxn: WriteTxn, changes: Iterable[tuple[Claims, Claims]]) -> None:
        """Put new claims in the place of old ones, for pairs of (old, new).

        All new ones are made before an old one goes: no address is without an identity in between.
        """
        changes = list(changes)
        for _, new in changes:
            for prefix, claim in new.items():
                self.upsert(wtxn, prefix, claim)
        for old, new in changes:
            for prefix, claim in old.items():
                kept = new.get(prefix)
                if kept is None or (kept.source, kept.owner) != (claim.source, claim.owner):
                    self.delete(wtxn, prefix, claim.source, claim.owner)

    def _put(self, wtxn: WriteTxn, row: IPCacheEntry, claims: tuple[Claim, ...]) -> None:
        if claims == row.claims:
            return
        same = _entry(claims[0]) == _entry(row.in_force)
        self.table.insert(
            wtxn,
            IPCacheEntry(
                prefix=row.prefix,
                cluster_id=row.cluster_id,
                claims=claims,
                status=row.status if same else pending(),
            ),
        )


def _with(claims: tuple[Claim, ...], claim: Claim) -> tuple[Claim, ...]:
    """Put a new claim in front of those of its source that did not begin after it; one that is
    known, and began when it did, keeps its place.
    """
    place = sum(_goes_before(known, claim) for known in claims)
    for at, known in enumerate(claims):
        if (known.source, known.owner) == (claim.source, claim.owner):
            claims = (*claims[:at], *claims[at + 1 :])
            place = at if known.since == claim.since else place - (at < place)
            break
    return (*claims[:place], claim, *claims[place:])


def _goes_before(known: Claim, claim: Claim) -> bool:
    """Return True if a claim goes before a new one."""
    rank, new_rank = PRIORITY[known.source], PRIORITY[claim.source]
    return rank < new_rank or (rank == new_rank and known.since > claim.since)


def _entry(claim: Claim) -> tuple[object, ...]:
    """Return what programs see of a claim."""
    return claim.identity, claim.host, claim.encrypt_key

# SPDX-License-Identifier: Apache-2.0
"""The writer of `desired-identities`, and the choice of a number that its owners make.

An owner asks for numbers and takes what ``identities`` has for its labels, so it goes on with known
sets whatever becomes of the API server. What is in force stays until its successor is there.
"""

from __future__ import annotations

from collections.abc import Set

from statedb import Channel, ReadTxn, RWTable, Table, WriteTxn
from tables.identity.desired_identities import DesiredIdentity
from tables.identity.identities import LABELS, Identity, is_cluster_number, labels_text

__all__ = ["Claim", "DesiredIdentities", "choose", "watch_claim", "with_labels"]

Labels = tuple[str, ...]
#: Labels and the number that is in force for them, 0 if any will do.
Claim = tuple[Labels, int]


class DesiredIdentities:
    """The rows of one owner. `adopts`: see `choose`."""

    def __init__(
        self,
        table: RWTable[DesiredIdentity],
        identities: RWTable[Identity],
        owner: str,
        *,
        adopts: bool,
    ) -> None:
        self.table = table
        self.identities = identities
        self._owner = owner
        self._adopts = adopts

    def choose(self, txn: ReadTxn, labels: Labels, in_force: Claim) -> tuple[Claim, list[Claim]]:
        """Return labels and number that are to be in force, and what to ask for; see `choose`."""
        return choose(self.identities, txn, labels, in_force, adopts=self._adopts)

    def replace(self, wtxn: WriteTxn, claims: Set[Claim]) -> None:
        """Have rows for these claims and no others; what stays keeps its status."""
        held = {(row.labels, row.number): row for row in self._rows(wtxn)}
        for claim in held.keys() - claims:
            self.table.delete(wtxn, held[claim])
        for labels, number in sorted(claims - held.keys()):
            self.table.insert(wtxn, DesiredIdentity(self._owner, labels, number))

    def lacks(self, txn: ReadTxn, labels: Labels) -> str:
        """Return why a set of labels has no number, in a sentence."""
        row = self.table.get(txn, (self._owner, labels_text(labels), 0))
        reason = row.status.error if row is not None else ""
        return f"its labels have no identity yet{f': {reason}' if reason else ''}"

    def _rows(self, txn: ReadTxn) -> list[DesiredIdentity]:
        return list(self.table.prefix(txn, (self._owner,)))


def watch_claim(identities: Table[Identity], txn: ReadTxn, row: DesiredIdentity) -> Channel:
    """Return what closes when the identities that a claim is about change."""
    if row.number:
        return identities.get_watch(txn, row.number)[1]
    return identities.list_watch(txn, labels_text(row.labels), LABELS)[1]


def with_labels(identities: Table[Identity], txn: ReadTxn, labels: Labels) -> list[Identity]:
    """Return the identities of a set of labels, the one that counts for new endpoints first.

    It is the oldest, and of equal ones the one with the lowest number, so that all nodes choose
    alike.
    """
    found = [
        row for row in identities.list(txn, labels_text(labels), LABELS) if row.labels == labels
    ]
    return sorted(found, key=lambda row: (row.created_at, row.id))


def choose(
    identities: Table[Identity],
    txn: ReadTxn,
    labels: Labels,
    in_force: Claim,
    *,
    adopts: bool,
) -> tuple[Claim, list[Claim]]:
    """Return labels and number that are to be in force, and what to ask for.

    `labels` are wanted, empty if not known yet; `in_force` is what is in force now: number 0 for
    nothing, empty labels for those of a run before that nobody knows. It stays until there is a
    number for the labels that are wanted. One that is to be deleted is not taken.

    `adopts`: a number in force of which nobody knows the labels is given to those that are wanted,
    which is right where no other node can have it for others.
    """
    held_labels, number = in_force
    is_held = is_cluster_number(number)
    if is_held:
        held = identities.get(txn, number)
        is_read = identities.filled(txn)
        if held is not None:
            held_labels = held.labels
        elif not held_labels and is_read and adopts:
            held_labels = labels
        elif not held_labels and not is_read:
            labels = ()  # they may be the number's own: what is known of it is not read yet
    claims = [(held_labels, number)] if is_held else []
    if not labels or (is_held and held_labels == labels):
        return (held_labels, number), claims
    for row in with_labels(identities, txn, labels):
        if not row.is_marked:
            return (labels, row.id), [(labels, row.id)]
    return (held_labels, number) if number else (labels, 0), [(labels, 0), *claims]

# SPDX-License-Identifier: Apache-2.0
"""Numbers for sets of labels, where this node alone gives them.

A set that is known keeps its number for as long as one of this node's endpoints has it; over a
restart the endpoints' saved state says which one that is. A number is given out again as late as
possible, so that nobody takes it for the one before.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from statedb import RWTable, WriteTxn
from tables.identity.identities import CLUSTER_MAX, CLUSTER_MIN, LABELS, Identity, labels_text

__all__ = ["IdentitiesExhausted", "LocalIdentities"]

log = structlog.get_logger("identity")

#: How many there are.
NUMBERS = CLUSTER_MAX - CLUSTER_MIN + 1


class IdentitiesExhausted(Exception):
    """Every number is taken."""

    def __init__(self) -> None:
        super().__init__(
            f"all {NUMBERS} identities of the cluster are in use: leave labels out of them that"
            " differ from workload to workload"
        )


class LocalIdentities:
    """Give and take back numbers, inside the caller's transaction over ``identities``."""

    def __init__(self, table: RWTable[Identity]) -> None:
        self._table = table
        self._next = CLUSTER_MIN

    def number_of(self, wtxn: WriteTxn, labels: tuple[str, ...]) -> int:
        """Return the number of a set of labels, a new one if it has none.

        Raises: IdentitiesExhausted.
        """
        known = self._table.list(wtxn, labels_text(labels), LABELS)
        for identity in known:
            if identity.labels == labels:
                return identity.id
        number = self._free(wtxn)
        self._table.insert(wtxn, Identity(number, labels))
        return number

    def restore(self, wtxn: WriteTxn, number: int, labels: tuple[str, ...]) -> int:
        """Return the number that a set had before a restart, unless another set has it by now."""
        held = self._table.get(wtxn, number)
        if not CLUSTER_MIN <= number <= CLUSTER_MAX or (held and held.labels != labels):
            log.warning("an identity gets another number", id=number, labels=list(labels))
            return self.number_of(wtxn, labels)
        if held is None:
            self._table.insert(wtxn, Identity(number, labels))
            self._next = max(self._next, number + 1)
        return number

    def keep(self, wtxn: WriteTxn, used: Collection[int]) -> None:
        """Take back all numbers but the reserved ones and those in use."""
        for identity in list(self._table.all(wtxn)):
            if not identity.is_reserved and identity.id not in used:
                self._table.delete(wtxn, identity)

    def _free(self, wtxn: WriteTxn) -> int:
        for step in range(NUMBERS):
            number = CLUSTER_MIN + (self._next - CLUSTER_MIN + step) % NUMBERS
            if self._table.get(wtxn, number) is None:
                self._next = number + 1
                return number
        raise IdentitiesExhausted

# SPDX-License-Identifier: Apache-2.0
"""Numbers for sets of labels, where this node alone gives them.

    desired-identities -> identities

A set that is known keeps its number for as long as somebody on this node has it; over a restart
those who have it say which one that is. A number is given out again as late as possible, so that
nobody takes it for the one before.
"""

from __future__ import annotations

from cilia.identity.desired import Labels, with_labels
from cilia.identity.numbers import NUMBERS, IdentitiesExhausted, TakenNumber
from statedb import DB, RWTable, Status, WriteTxn, wait_initialized
from statedb.status import done, error, set_status
from tables.identity.desired_identities import DesiredIdentity
from tables.identity.identities import CLUSTER_MIN, Identity, is_cluster_number

__all__ = ["LocalIdentities"]


class LocalIdentities:
    """One task calls `run`."""

    def __init__(
        self, db: DB, desired: RWTable[DesiredIdentity], identities: RWTable[Identity]
    ) -> None:
        self._db = db
        self._desired = desired
        self._identities = identities
        self._next = CLUSTER_MIN

    async def run(self) -> None:
        """Follow what is desired, once it is known which numbers are in force."""
        await wait_initialized(self._db, self._desired)
        while True:
            changed = self._db.look(lambda txn: self._desired.all_watch(txn)[1])
            self.step()
            await changed.wait()

    def step(self) -> None:
        """Write what differs."""
        with self._db.write_txn(self._desired, self._identities) as wtxn:
            rows = list(self._desired.all(wtxn))
            claimed = {row.number for row in rows}
            self._remove_unused(wtxn, claimed, {row.labels for row in rows})
            # Numbers in force first: none of them is given to others.
            for row in sorted(rows, key=lambda row: not row.number):
                try:
                    self._meet(wtxn, row, claimed)
                    status = done()
                except (IdentitiesExhausted, TakenNumber) as failure:
                    status = error(str(failure))
                self._tell(wtxn, row, status)

    def _remove_unused(self, wtxn: WriteTxn, claimed: set[int], wanted: set[Labels]) -> None:
        for identity in list(self._identities.all(wtxn)):
            is_used = identity.id in claimed or identity.labels in wanted
            if not is_used and not identity.is_reserved:
                self._identities.delete(wtxn, identity)

    def _meet(self, wtxn: WriteTxn, row: DesiredIdentity, claimed: set[int]) -> None:
        """Have an identity for a row. Raises: IdentitiesExhausted, TakenNumber."""
        if row.number:
            self._claim(wtxn, row)
        elif not with_labels(self._identities, wtxn, row.labels):
            self._identities.insert(wtxn, Identity(self._free(wtxn, claimed), row.labels))

    def _claim(self, wtxn: WriteTxn, row: DesiredIdentity) -> None:
        """Raises: TakenNumber."""
        held = self._identities.get(wtxn, row.number)
        if held is None and row.labels and is_cluster_number(row.number):
            self._identities.insert(wtxn, Identity(row.number, row.labels))
            self._next = max(self._next, row.number + 1)
        elif held is not None and row.labels and held.labels != row.labels:
            raise TakenNumber(row.number, held.labels)

    def _free(self, wtxn: WriteTxn, claimed: set[int]) -> int:
        for step in range(NUMBERS):
            number = CLUSTER_MIN + (self._next - CLUSTER_MIN + step) % NUMBERS
            if number not in claimed and self._identities.get(wtxn, number) is None:
                self._next = number + 1
                return number
        raise IdentitiesExhausted

    def _tell(self, wtxn: WriteTxn, row: DesiredIdentity, status: Status) -> None:
        if (row.status.kind, row.status.error) != (status.kind, status.error):
            self._desired.insert(wtxn, set_status(row, status))

# SPDX-License-Identifier: Apache-2.0
"""Identities that nodes agree on: those of objects, and those in force whose object is gone.

    k8s-identities, desired-identities -> identities

An object that somebody deletes while its number is in force here leaves its row in place: what
follows from the number stays as it is, and `objects.py` makes the object anew.
"""

from __future__ import annotations

from statedb import DB, RWTable, Table, WatchSet, WriteTxn
from tables.identity.desired_identities import NUMBER, DesiredIdentity
from tables.identity.identities import Identity, is_cluster_number

__all__ = ["SharedIdentities"]

#: Changes that come together are looked at once.
SETTLE_S = 0.001


class SharedIdentities:
    """One task calls `run`. Work is in the number of changes, not of identities."""

    def __init__(
        self,
        db: DB,
        objects: RWTable[Identity],
        desired: RWTable[DesiredIdentity],
        identities: RWTable[Identity],
    ) -> None:
        self._db = db
        self._objects: Table[Identity] = objects
        self._desired: Table[DesiredIdentity] = desired
        self._identities = identities
        with db.write_txn(objects, desired, identities) as wtxn:
            self._object_changes = objects.changes(wtxn)
            self._desired_changes = desired.changes(wtxn)
            self._complete = identities.register_initializer(wtxn, "objects")

    async def run(self) -> None:
        """Follow the tables for ever."""
        while True:
            await self.step().wait(SETTLE_S)

    def step(self) -> WatchSet:
        """Write what differs; return what to wait for."""
        with self._db.write_txn(self._identities) as wtxn:
            objects, more_objects = self._object_changes.next(wtxn)
            desired, more_desired = self._desired_changes.next(wtxn)
            watches = WatchSet(more_objects, more_desired)
            numbers = {change.obj.id for change in objects}
            numbers |= {change.obj.number for change in desired}
            for number in filter(is_cluster_number, sorted(numbers)):
                self._write(wtxn, number)
            initialized, changed = self._objects.initialized_watch(wtxn)
            if initialized:
                self._complete(wtxn)
            else:
                filled, filling = self._objects.filled_watch(wtxn)
                watches.add(changed, filling)
                if filled:
                    self._complete.stall(wtxn)
        return watches

    def _write(self, wtxn: WriteTxn, number: int) -> None:
        held = self._identities.get(wtxn, number)
        row = self._objects.get(wtxn, number) or self._in_force(wtxn, number, held)
        if row is None and held is not None:
            self._identities.delete(wtxn, held)
        elif row is not None and row != held:
            self._identities.insert(wtxn, row)

    def _in_force(self, wtxn: WriteTxn, number: int, held: Identity | None) -> Identity | None:
        """Return the identity of a number that has no object, if it is in force."""
        claimed = [row.labels for row in self._desired.list(wtxn, number, NUMBER)]
        if not claimed:
            return None
        if held is not None and (held.labels in claimed or not any(claimed)):
            return Identity(number, held.labels)
        labels = next(filter(None, claimed), None)
        return None if labels is None else Identity(number, labels)

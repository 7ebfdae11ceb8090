# SPDX-License-Identifier: Apache-2.0
"""Derived tables and change streams: what follows a table by itself.

`derive` keeps a table filled from another one; `observe` yields changes to whoever iterates. Both
start with the objects that are there, and both end when their task is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from enum import Enum
from functools import partial
from typing import Generic, TypeVar

from statedb._change import Change
from statedb._commits import ReadTxn
from statedb.changes import ChangeIterator
from statedb.db import DB
from statedb.table import RWTable
from statedb.txn import WriteTxn
from statedb.watch import Channel, wait_any

S = TypeVar("S")
T = TypeVar("T")


class Action(Enum):
    """What to do with a derived object."""

    INSERT = "insert"
    UPDATE = "update"
    """Insert only where there is one already."""
    DELETE = "delete"
    SKIP = "skip"


class Derivation(Generic[S, T]):
    """Keeps `target` filled from `source`; made by `derive`, run by its owner as a task."""

    def __init__(
        self,
        db: DB,
        source: RWTable[S],
        target: RWTable[T],
        transform: Callable[[S, bool], tuple[T | None, Action]],
    ) -> None:
        self._db = db
        self._source = source
        self._target = target
        self._transform = transform
        with db.write_txn(source, target) as wtxn:
            self._changes: ChangeIterator[S] = source.changes(wtxn)
            self._done: Callable[[WriteTxn], None] | None = target.register_initializer(
                wtxn, f"derive from {source.name}"
            )

    async def run(self) -> None:
        """Follow the source until cancelled."""
        try:
            while True:
                channel, ready = self._db.look(self._look)
                if self._done is None:
                    await channel.wait()
                else:
                    await wait_any((channel, ready))
        finally:
            self._changes.close()

    def _look(self, txn: ReadTxn) -> tuple[Channel, Channel]:
        """Apply what changed; return what closes with the next change, and when all is known."""
        changes, channel = self._changes.next(txn)
        self.apply(list(changes), self._source.initialized(txn))
        _, ready = self._source.initialized_watch(txn)
        return channel, ready

    def apply(self, changes: list[Change[S]], initialized: bool) -> None:
        """Bring the changes into the target in one transaction; mark it initialized after the
        source is.
        """
        done = self._done if initialized else None
        if not changes and done is None:
            return
        steps = [self._transform(change.obj, change.deleted) for change in changes]
        with self._db.write_txn(self._target) as wtxn:
            for obj, action in steps:
                if obj is not None:
                    self._act(wtxn, obj, action)
            if done is not None:
                done(wtxn)
                self._done = None

    def _act(self, wtxn: WriteTxn, obj: T, action: Action) -> None:
        target = self._target
        if action is Action.INSERT:
            target.insert(wtxn, obj)
        elif action is Action.DELETE:
            target.delete(wtxn, obj)
        elif (
            action is Action.UPDATE and target.get(wtxn, target.primary.keys_of(obj)[0]) is not None
        ):
            target.insert(wtxn, obj)


def derive(
    db: DB,
    source: RWTable[S],
    target: RWTable[T],
    transform: Callable[[S, bool], tuple[T | None, Action]],
) -> Derivation[S, T]:
    """Derive `target` from `source`: `transform(object, deleted)` says what to write and how.

    The target counts as initialized once it has all that an initialized source held.
    """
    return Derivation(db, source, target, transform)


def _new(changes: ChangeIterator[T], txn: ReadTxn) -> tuple[list[Change[T]], Channel]:
    found, channel = changes.next(txn)
    return list(found), channel


async def observe(db: DB, table: RWTable[T]) -> AsyncIterator[Change[T]]:
    """Yield each change of the table, all present objects first; a slow reader gets only the
    newest of each object.
    """
    with db.write_txn(table) as wtxn:
        changes = table.changes(wtxn)
    try:
        while True:
            found, channel = db.look(partial(_new, changes))
            for change in found:
                yield change
            found.clear()
            await channel.wait()
    finally:
        changes.close()

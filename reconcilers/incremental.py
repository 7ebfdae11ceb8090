# SPDX-License-Identifier: Apache-2.0
"""One round: a limited number of changes and due retries go to the target, statuses come back.

1. Collect changed objects in revision order, up to the round's size, then due retries.
2. Apply them: consecutive updates and consecutive deletes as batches, or one by one.
3. Write all statuses in one transaction, each by compare-and-swap.
4. Put what failed into the retry queue.

What was taken from the change iterator and not seen through to 4 goes to the retry queue, whatever
happens: the iterator will not show it again.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, Generic, NamedTuple, TypeVar

from reconcilers.config import Config
from reconcilers.operations import BatchOperations, Entry, Operations, Refusal
from reconcilers.retries import Retries, RetryItem, text_of
from statedb import DB, Change, ReadTxn, RWTable, Status, StatusKind, WriteTxn
from statedb.status import done, refused
from statedb.status import error as failed_status

T = TypeVar("T")

#: What a reconciler has answered, and does not look at again by itself.
FINISHED: Final = (StatusKind.DONE, StatusKind.REFUSED)


class RoundResult(NamedTuple):
    """What a round did; `more` says that it stopped at its size and not at the end of changes."""

    updated: int
    deleted: int
    failed: int
    more: bool
    last_revision: int  # of the last change taken, 0 without one


class Incremental(Generic[T]):
    """Runs rounds for one table and one target; not thread-safe, one round at a time."""

    def __init__(
        self,
        db: DB,
        table: RWTable[T],
        operations: Operations[T],
        get_status: Callable[[T], Status],
        set_status: Callable[[T, Status], T],
        config: Config,
        retries: Retries[T],
        weight: Callable[[T], int] | None = None,
    ) -> None:
        self._weight = weight
        self._db = db
        self._table = table
        self._key_of = table.primary_key
        self._operations = operations
        self._batch = operations if isinstance(operations, BatchOperations) else None
        self._get_status = get_status
        self._set_status = set_status
        self._config = config
        self._retries = retries

    def run(self, txn: ReadTxn, changes: Iterable[Change[T]]) -> RoundResult:
        """Do one round over `changes`, which are read no further than the round's size."""
        entries: list[Entry[T]] = []
        try:
            more, last_revision = self._collect_changes(changes, entries)
            self._collect_retries(txn, entries)
            self._apply(txn, entries)
            self._commit(entries)
        except BaseException as failure:
            for entry in entries:
                self._retry(entry, str(failure) or type(failure).__name__)
            raise
        if len(self._retries):
            for entry in entries:
                if entry.error is None or isinstance(entry.error, Refusal):
                    self._retries.clear(self._key_of(entry.obj))
        failed = deleted = 0
        for entry in entries:
            error = entry.error
            if error is not None and not isinstance(error, Refusal):
                failed += 1
                self._retry(entry, text_of(error))
            elif entry.deleted:
                deleted += 1
        updated = len(entries) - deleted - failed
        return RoundResult(updated, deleted, failed, more, last_revision)

    def _collect_changes(
        self, changes: Iterable[Change[T]], entries: list[Entry[T]]
    ) -> tuple[bool, int]:
        limit, get_status, weight = self._config.round_size, self._get_status, self._weight
        size = 0
        finished, declined, failed = StatusKind.DONE, StatusKind.REFUSED, StatusKind.ERROR
        revision = 0
        for change in changes:
            obj = change.obj
            revision = change.revision
            if change.deleted:
                entries.append(Entry(obj, revision, True))
            else:
                status = get_status(obj)
                kind = status.kind
                if kind is finished or kind is declined:
                    continue
                # An error that waits for its retry is our own status write; any other one was
                # left by a reconciler before us and is attempted now.
                if kind is failed and self._key_of(obj) in self._retries:
                    continue
                entries.append(Entry(obj, revision, False, status.id))
            size += 1 if weight is None else weight(obj)
            if size >= limit:
                return True, revision
        return False, revision

    def _collect_retries(self, txn: ReadTxn, entries: list[Entry[T]]) -> None:
        retries = self._retries
        if not len(retries):
            return
        for entry in entries:
            retries.clear(self._key_of(entry.obj))  # a newer version starts anew
        size = self._config.round_size
        share = max(1, int(size * self._config.retry_share))
        for item in retries.take_due(max(size - len(entries), share)):
            retried = self._retried(txn, item)
            if retried is None:
                retries.clear(item.key)
            else:
                entries.append(retried)

    def _retried(self, txn: ReadTxn, item: RetryItem[T]) -> Entry[T] | None:
        """The entry for a retry, from the newest version; None if there is nothing left to do."""
        row = self._table.get_row(txn, item.key)
        if item.deleted:
            # A row that came back takes the place of what could not be deleted.
            return Entry(item.obj, item.revision, True) if row is None else None
        if row is None:
            return None
        obj, revision = row
        status = self._get_status(obj)
        if status.kind in FINISHED:
            return None
        return Entry(obj, revision, False, status.id)

    def _apply(self, txn: ReadTxn, entries: Sequence[Entry[T]]) -> None:
        batch = self._batch
        if batch is None:
            self._apply_singly(txn, entries)
            return
        for deleted, group in groupby(entries, key=attrgetter("deleted")):
            operation = batch.delete_batch if deleted else batch.update_batch
            self._apply_batch(txn, operation, list(group))

    def _apply_singly(self, txn: ReadTxn, entries: Iterable[Entry[T]]) -> None:
        update, delete = self._operations.update, self._operations.delete
        for entry in entries:
            try:
                if entry.deleted:
                    delete(txn, entry.revision, entry.obj)
                else:
                    entry.result = update(txn, entry.revision, entry.obj)
            except Exception as exc:  # noqa: BLE001  any failure of a target is this object's error
                entry.error = exc

    def _apply_batch(
        self,
        txn: ReadTxn,
        operation: Callable[[ReadTxn, Sequence[Entry[T]]], None],
        entries: Sequence[Entry[T]],
    ) -> None:
        try:
            operation(txn, entries)
        except Exception as exc:  # noqa: BLE001  as in _apply_singly
            if len(entries) == 1:
                entries[0].error = exc
                return
            for entry in entries:
                entry.error = entry.result = None
                self._apply_batch(txn, operation, (entry,))

    def _commit(self, entries: Iterable[Entry[T]]) -> None:
        """Write the statuses of updated objects, never over data that is newer than was applied."""
        updates = [entry for entry in entries if not entry.deleted]
        if not updates:
            return
        swap, set_status = self._table.compare_and_swap, self._set_status
        success = done()
        with self._db.write_txn(self._table) as wtxn:
            for entry in updates:
                failure = entry.error
                status = success if failure is None else _status_of(failure)
                learned = entry.result
                obj = set_status(entry.obj if learned is None else learned, status)
                old, swapped = swap(wtxn, entry.revision, obj)
                if not swapped and old is not None:
                    self._commit_over(wtxn, entry, old, status)

    def _commit_over(self, wtxn: WriteTxn, entry: Entry[T], current: T, status: Status) -> None:
        """Write only the status into a row that changed while it was being applied.

        The same status id says that whoever changed it left our status alone: another
        reconciler of the table wrote its own. What the operation learned would be lost, so a row
        with a learned object stays pending and is applied once more.
        """
        current_status = self._get_status(current)
        same = current_status.id == entry.status_id and current_status.kind not in FINISHED
        if same and entry.result is None:
            self._table.insert(wtxn, self._set_status(current, status))

    def _retry(self, entry: Entry[T], text: str) -> None:
        key = self._key_of(entry.obj)
        self._retries.add(key, entry.obj, entry.revision, entry.deleted, text)


def _status_of(failure: Exception) -> Status:
    text = text_of(failure)
    return refused(text) if isinstance(failure, Refusal) else failed_status(text)

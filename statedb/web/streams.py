# SPDX-License-Identifier: Apache-2.0
"""The changes of one table for a reader outside, as JSON lines.

    head     {"instance": I, "table": "T", "snapshot": true, "reason": "...", "columns": [...]}
    change   {"revision": r, "object": OBJECT}    with "deleted": true if it is gone
    mark     {"synced": R}     all changes up to revision R have been told

A stream begins with a head. With `snapshot`, what follows up to the first mark is the whole table,
and a reader forgets everything else it knows. A reader that comes back names the instance and the
mark it had; it gets a snapshot again, with the reason, if that instance is gone or deletes since
then are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from statedb.errors import InstanceMismatch, RevisionGone
from statedb.shown.answers import chunked, filler
from statedb.shown.columns import columns_of
from statedb.shown.plain import json_line
from statedb.shown.queries import At

if TYPE_CHECKING:
    from statedb.changes import ChangeIterator
    from statedb.db import DB
    from statedb.table import RWTable
    from statedb.watch import Channel


class ChangeStream:
    """Batches of a stream. `next` and `close` may wait for a lock: call them on a worker thread."""

    def __init__(self, db: DB, table: RWTable[Any], resume: str, form: str) -> None:
        self._db = db
        self._table = table
        self._resume = At.parse(resume)
        self._fill = filler(table, form)
        self._changes: ChangeIterator[Any] | None = None

    def next(self) -> tuple[Iterator[bytes], Channel]:
        """The chunks of the next batch, and a channel that closes when there is one more."""
        head = b"" if self._changes else self._open()
        assert self._changes is not None
        txn = self._db.read_txn()
        changes, channel = self._changes.next(txn)
        return chunked(self._lines(head, changes, self._table.revision(txn))), channel

    def _lines(self, head: bytes, changes: Iterator[Any], revision: int) -> Iterator[bytes]:
        if head:
            yield head
        for change in changes:
            line: dict[str, Any] = {"revision": change.revision, **self._fill(change.obj)}
            if change.deleted:
                line["deleted"] = True
            yield json_line(line) + b"\n"
        yield json_line({"synced": revision}) + b"\n"

    def _open(self) -> bytes:
        """Goes on where the reader was if nothing since then is forgotten, else starts anew."""
        reason = ""
        with self._db.write_txn(self._table) as wtxn:
            try:
                self._changes = self._table.changes(wtxn, since=self._seen())
            except (InstanceMismatch, RevisionGone) as error:
                reason = str(error)
                self._changes = self._table.changes(wtxn)
        head = {
            "instance": self._db.instance_id,
            "table": self._table.name,
            "snapshot": not self._resume.revision or bool(reason),
            "reason": reason,
            "columns": [column.name for column in columns_of(self._table)],
        }
        return json_line(head) + b"\n"

    def _seen(self) -> int:
        if self._resume.revision and self._resume.instance != self._db.instance_id:
            raise InstanceMismatch(
                f"revision {self._resume.revision} is of instance {self._resume.instance or '?'}, "
                f"this is {self._db.instance_id}"
            )
        return self._resume.revision

    def lag(self) -> int:
        """How many revisions the table is ahead of the last change that was told."""
        if self._changes is None:
            return 0
        return self._table.revision(self._db.read_txn()) - self._changes.revision

    def close(self) -> None:
        """Lets go of the deleted objects that wait for this reader."""
        if self._changes is not None:
            self._changes.close()

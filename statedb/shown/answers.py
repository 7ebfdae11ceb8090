# SPDX-License-Identifier: Apache-2.0
"""What a database answers from outside, as bytes in chunks that are made one at a time.

    summary        one object
    dump           {"instance": I, "revision": R, "tables": {"T": [OBJECT, ...], ...}}
    query          head  {"instance": I, "revision": R, "table": "T", "columns": [...]}
                   row   {"revision": r, "object": OBJECT}     or "cells": [...] in place of it
                   end   {"rows": N}      an answer without it broke off

All of one answer is read from one snapshot, which lives until the last chunk is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from statedb.errors import BadFormat
from statedb.holders import OLD_S, oldest_snapshot
from statedb.shown.columns import cells, columns_of
from statedb.shown.plain import json_line, shown
from statedb.shown.queries import At, query

if TYPE_CHECKING:
    from statedb._commits import ReadTxn
    from statedb.db import DB
    from statedb.table import Table

FORMS = ("object", "cells")
CHUNK_BYTES = 64 << 10  # about what a socket takes at once
CHUNK_ROWS = 256  # rows between two looks at the size: 1 ms of work for a worker thread

Fill = Callable[[Any], dict[str, Any]]


def filler(table: Table[Any], form: str) -> Fill:
    """What makes the part of a row that shows the object.

    Raises:
        BadFormat: the form is neither `object` nor `cells`.
    """
    if form not in FORMS:
        raise BadFormat(f"unknown form {form!r}: it is object or cells")
    columns = columns_of(table)
    if form == "cells":
        return lambda obj: {"cells": cells(columns, obj)}
    return lambda obj: {"object": shown(table, obj)}


def summary(db: DB) -> dict[str, Any]:
    """The database, and each of its tables by name."""
    txn = db.read_txn()
    tables = sorted(db.tables(), key=lambda table: table.name)
    held = oldest_snapshot(db, OLD_S)
    return {
        "instance": db.instance_id,
        "tables": [_described(table, txn) for table in tables],
        "oldest_snapshot": None if held is None else held._asdict(),
    }


def _described(table: Table[Any], txn: ReadTxn) -> dict[str, Any]:
    return {
        "name": table.name,
        "objects": table.num_objects(txn),
        "deleted": table.graveyard_size(),
        "revision": table.revision(txn),
        "type": "" if table.row_type is None else table.row_type.__name__,
        "indexes": [index.name for index in table.indexes],
        "columns": [column.name for column in columns_of(table)],
        "pending_initializers": list(table.pending_initializers(txn)),
    }


def query_chunks(
    db: DB, table: Table[Any], kind: str, key: str, index: str, at: At, form: str
) -> Iterator[bytes]:
    """The answer to a query; what is wrong with it is raised here, not with the first chunk."""
    txn = at.txn(db, table)
    fill = filler(table, form)
    found = query(table, txn, kind, key, index)
    head = {
        "instance": db.instance_id,
        "revision": table.revision(txn),
        "table": table.name,
        "columns": [column.name for column in columns_of(table)],
    }
    return chunked(_query_lines(table, txn, head, found, fill))


def _query_lines(
    table: Table[Any], txn: ReadTxn, head: dict[str, Any], found: Iterable[Any], fill: Fill
) -> Iterator[bytes]:
    yield json_line(head) + b"\n"
    count = 0
    for obj in found:
        row = table.get_row(txn, table.primary_key(obj))
        yield json_line({"revision": 0 if row is None else row[1], **fill(obj)}) + b"\n"
        count += 1
    yield json_line({"rows": count}) + b"\n"


def dump_chunks(db: DB, tables: Iterable[Table[Any]], txn: ReadTxn) -> Iterator[bytes]:
    """One JSON document with all objects of these tables."""
    return chunked(_dump_pieces(db, tables, txn))


def _dump_pieces(db: DB, tables: Iterable[Table[Any]], txn: ReadTxn) -> Iterator[bytes]:
    yield b'{"instance":%s,"tables":{' % json_line(db.instance_id)
    between = b"\n"
    for table in tables:
        yield between + json_line(table.name) + b":["
        comma = b"\n"
        for obj in table.all(txn):
            yield comma + json_line(shown(table, obj))
            comma = b",\n"
        yield b"]"
        between = b",\n"
    yield b"}}\n"


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces joined to chunks of about CHUNK_BYTES or CHUNK_ROWS pieces, none of them empty."""
    chunk: list[bytes] = []
    size = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES or len(chunk) >= CHUNK_ROWS:
            yield b"".join(chunk)
            chunk, size = [], 0
    if chunk:
        yield b"".join(chunk)

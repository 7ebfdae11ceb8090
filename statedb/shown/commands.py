# SPDX-License-Identifier: Apache-2.0
"""The `db` commands of golden scripts and of the live shell, as plain values.

A command is a name, flags, help and a function; any engine that calls `run(state, flags, args)`
and understands `Output` can take them. Start with `db_commands`; what the engine's state has to
offer is `State`. A failure is an exception, and every exception is an ordinary failure of the
command, except for TimeoutError: the script's own time is over.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from statedb.errors import CommandFailed, TableMismatch
from statedb.shown.answers import dump_chunks, summary
from statedb.shown.columns import cells, columns_of, layout, select
from statedb.shown.command import Command, Flag, Output, Run, State
from statedb.shown.compare import Expected
from statedb.shown.queries import At, query, writable
from statedb.shown.rendering import render, summary_text
from statedb.shown.yaml_form import from_yaml

if TYPE_CHECKING:
    from statedb.changes import ChangeIterator
    from statedb.db import DB
    from statedb.table import RWTable, Table
    from statedb.watch import Channel

DEFAULT_TIMEOUT_S = 5.0


_OUT = Flag("out", "o", "str", "", "file to write to instead of stdout")
_COLUMNS = Flag("columns", "", "strings", None, "columns to print, divided by commas (table only)")
_FORMAT = Flag("format", "f", "str", "table", "table, yaml or json")
_AT = Flag("at-revision", "", "str", "", "the table as it was at [INSTANCE:]REVISION")
_TIMEOUT = Flag("timeout", "", "duration", DEFAULT_TIMEOUT_S, "how long to wait")
_SHOWN = (_OUT, _COLUMNS, _FORMAT, _AT)
_QUERIED = (*_SHOWN, Flag("index", "i", "str", "", "index to query; the primary if not given"))


def db_commands(db: DB, *, read_only: bool = False) -> tuple[Command, ...]:
    """All `db` commands over this database, or with `read_only` those that write nothing."""
    kinds = (
        ("get", "the first object with this key"),
        ("list", "all objects with this key"),
        ("prefix", "all objects whose key begins with this one"),
        ("lower_bound", "all objects whose key is this one or comes after it"),
    )
    reading = (
        _describe(db),
        _show(db),
        _compare(db),
        _empty(db),
        *(_query(db, kind, summary, read_only) for kind, summary in kinds),
        _initialized(db),
        _watch(db),
        _dump(db),
    )
    if read_only:
        return reading
    return (
        *reading,
        _write(db, "insert", "insert objects, read from YAML files, into a table"),
        _write(db, "delete", "delete the objects whose keys YAML files give"),
    )


def _command(
    db: DB,
    name: str,
    run: Run,
    summary: str,
    usage: str,
    detail: Sequence[str],
    flags: Sequence[Flag] = (),
) -> Command:
    def words() -> list[str]:
        return sorted(table.name for table in db.tables())

    return Command(name, summary, usage, run, detail, flags, words=words)


def _describe(db: DB) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> Output:
        _expect(not args, "db takes no arguments")
        return Output(summary_text(summary(db)))

    detail = (
        "Objects: rows of the table. Deleted: rows that change iterators or snapshots still hold.",
        "Initializers: those that the table still waits for.",
    )
    return _command(db, "db", run, "list all tables", "", detail)


def _show(db: DB) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> Output:
        _expect(len(args) == 1, "expected a table")
        table = db.table(args[0])
        return _print(state, flags, table, query(table, _at(flags).txn(db, table), "all"))

    detail = (
        "Rows are printed in the order of the primary key.",
        "Examples:",
        "  db/show frontends --columns=Address,Status",
        "  db/show frontends -f yaml -o frontends.yaml",
    )
    return _command(db, "db/show", run, "print a table", "TABLE", detail, _SHOWN)


def _query(db: DB, kind: str, summary: str, read_only: bool) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> Output:
        _expect(len(args) == 2, "expected a table and a key")
        table = writable(db, args[0])
        txn = _at(flags).txn(db, table)
        found = list(query(table, txn, kind, args[1], flags["index"]))
        output = _print(state, flags, table, found)
        if flags.get("delete"):
            state.log(f"deleted {_delete(db, table, found)} objects\n")
        return output

    detail = ("The key is text, read as the index reads it.",)
    deleting = () if read_only else (Flag("delete", help="delete what was found"),)
    flags = (*_QUERIED, *deleting)
    name = f"db/{kind.replace('_', '')}"
    return _command(db, name, run, summary, "TABLE KEY", detail, flags)


def _delete(db: DB, table: RWTable[Any], objects: Iterable[Any]) -> int:
    with db.write_txn(table) as wtxn:
        return sum(table.delete(wtxn, obj)[1] for obj in objects)


def _print(
    state: State, flags: dict[str, Any], table: Table[Any], objects: Iterable[Any]
) -> Output:
    return _deliver(state, flags, render(table, objects, flags["format"], flags["columns"]))


def _deliver(state: State, flags: dict[str, Any], text: str) -> Output:
    if not flags["out"]:
        return Output(text)
    state.write_text(flags["out"], text)
    return Output()


def _at(flags: dict[str, Any]) -> At:
    return At.parse(flags["at-revision"])


def _compare(db: DB) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        _expect(len(args) == 2, "expected a table and a file")
        table = db.table(args[0])
        expected = Expected.parse(state.expand(state.read_text(args[1])), args[1])
        pattern = re.compile(flags["grep"]) if flags["grep"] else None
        wait = _Patience(state, flags["timeout"])
        chosen = select(columns_of(table), expected.names)
        while True:
            objects, channel = table.all_watch(db.read_txn())
            rows = expected.filtered((cells(chosen, obj) for obj in objects), pattern)
            difference = expected.difference(rows)
            if difference is None:
                return
            if not wait.until_closed(channel):
                break
        if not state.update_golden:
            raise TableMismatch("table mismatch:\n" + difference)
        state.record_golden(args[1], expected.recorded(rows))

    detail = (
        "The file's first line names columns of the table, in any order and letter case;",
        "values stand exactly under their heading. ${NAME} is expanded in the whole file.",
        "Waits for the table to change until it equals the file or the timeout is over.",
        "Differences: lines with - are in the table, lines with + are in the file.",
    )
    grep = Flag("grep", "", "str", "", "compare only the table's rows that match this regexp")
    summary = "compare a table with a file"
    return _command(db, "db/cmp", run, summary, "TABLE FILE", detail, (_TIMEOUT, grep))


class _Patience:
    """Waits for channels until a timeout, or until the script's own time is over."""

    def __init__(self, state: State, timeout_s: float) -> None:
        self._state = state
        self._deadline = time.monotonic() + timeout_s

    def until_closed(self, channel: Channel) -> bool:
        """False when the timeout is over.

        Raises:
            TimeoutError: the script's time is over.
        """
        left_s = self._deadline - time.monotonic()
        script_s = self._state.remaining_s()
        if channel.wait_sync(min(max(left_s, 0.0), max(script_s, 0.0), threading.TIMEOUT_MAX)):
            return True
        if script_s <= left_s:
            raise TimeoutError("the script's time is over")
        return False


def _empty(db: DB) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        txn = db.read_txn()
        for table in [db.table(name) for name in args]:
            count = table.num_objects(txn)
            _expect(count == 0, f"table {table.name} is not empty: it has {count} objects")

    detail = ("Does not wait: put a * before it to try again until it holds.",)
    return _command(db, "db/empty", run, "check that tables are empty", "[TABLE...]", detail)


def _write(db: DB, verb: str, summary: str) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        _expect(len(args) >= 2, "expected a table and files")
        table = writable(db, args[0])
        write = table.insert if verb == "insert" else table.delete
        objects = [obj for file in args[1:] for obj in _objects(state, table, file)]
        with db.write_txn(table) as wtxn:
            for obj in objects:
                write(wtxn, obj)

    detail = (
        "A file may hold several objects divided by ---. All files are one transaction.",
        "Fields that are left out have their zero value; letter case, _ and - do not matter.",
    )
    return _command(db, f"db/{verb}", run, summary, "TABLE FILE...", detail)


def _objects(state: State, table: Table[Any], file: str) -> list[Any]:
    """The objects of a file; it is divided wherever --- stands, as the files are written for."""
    row_type = table.row_type
    if row_type is None:
        raise CommandFailed(f"table {table.name} has no row type that files could be read into")

    def unknown(name: str) -> None:
        state.log(f"{file}: {row_type.__name__} has no field {name!r}: ignored\n")

    parts = state.read_text(file).split("---")
    return [from_yaml(part, row_type, unknown) for part in parts if part.strip()]


def _initialized(db: DB) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        tables = [db.table(name) for name in args] or db.tables()
        wait = _Patience(state, flags["timeout"])
        for table in tables:
            while pending := _pending(table, db):
                names, channel = pending
                state.log(f"{table.name} waits for {names}\n")
                if not wait.until_closed(channel):
                    raise CommandFailed(f"table {table.name} is not initialized: waits for {names}")

    summary = "wait until tables are initialized"
    detail = ("Without arguments: all tables.",)
    return _command(db, "db/initialized", run, summary, "[TABLE...]", detail, (_TIMEOUT,))


def _pending(table: Table[Any], db: DB) -> tuple[str, Channel] | None:
    """None if the table is initialized; else what it waits for, and a channel to look again."""
    txn = db.read_txn()
    initialized, channel = table.initialized_watch(txn)
    return None if initialized else (", ".join(table.pending_initializers(txn)), channel)


def _watch(db: DB) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> Output | None:
        _expect(len(args) == 1, "expected a table")
        table = writable(db, args[0])
        bounded = bool(flags["timeout"] or flags["count"])
        wait = _Patience(state, flags["timeout"] or math.inf)
        told: list[str] = []
        tell = told.append if bounded else state.log
        with db.write_txn(table) as wtxn:
            changes = table.changes(wtxn)
        try:
            _tell_changes(db, table, changes, tell, wait, flags["count"] or sys.maxsize)
        finally:
            changes.close()
        return Output("".join(told)) if bounded else None

    detail = (
        "Prints what is there, then each change as it happens, until it is interrupted.",
        "With --timeout or --count it prints all of it to stdout when it ends.",
    )
    flags = (
        Flag("timeout", "", "duration", None, "stop after this time"),
        Flag("count", "", "int", None, "stop after this many changes"),
    )
    return _command(db, "db/watch", run, "print the changes of a table", "TABLE", detail, flags)


def _tell_changes(
    db: DB,
    table: Table[Any],
    changes: ChangeIterator[Any],
    tell: Callable[[str], object],
    wait: _Patience,
    left: int,
) -> None:
    columns = columns_of(table)
    widths: list[int] = []
    rows = [["Change", *(column.name for column in columns)]]
    while True:
        batch, channel = changes.next(db.read_txn())
        for change in itertools.islice(batch, left):
            rows.append(["delete" if change.deleted else "write", *cells(columns, change.obj)])
            left -= 1
        if rows:
            tell(layout(rows, widths))
        rows = []
        if not left or not wait.until_closed(channel):
            return


def _dump(db: DB) -> Command:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> Output:
        tables = [db.table(name) for name in args] or db.tables()
        document = b"".join(dump_chunks(db, tables, db.read_txn())).decode()
        return _deliver(state, flags, document)

    summary = "print tables as one JSON document"
    detail = ("Without arguments: all tables.",)
    return _command(db, "db/dump", run, summary, "[TABLE...]", detail, (_OUT,))


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise CommandFailed(message)

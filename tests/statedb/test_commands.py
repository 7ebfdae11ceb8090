# SPDX-License-Identifier: Apache-2.0
"""The db commands beside their golden scripts: what failures say, time, golden updates, help."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cilia.script.flags import parse_flags
from cilia.script.helptext import command_help
from cilia.script.runner import run_file
from cilia.script.state import State
from statedb.errors import CommandFailed, StateDBError, TableMismatch
from statedb.shown.command import Command, Output
from statedb.shown.commands import db_commands
from statedb.shown.compare import Expected
from tests.statedb_application import SUITE, Book, Library


class Shell:
    """Runs command lines against the commands, as the engine does."""

    def __init__(self, directory: Path, deadline_s: float = 5.0) -> None:
        self.library = Library(["--history=5"])
        self.log: list[str] = []
        self.state = State(directory, deadline=time.monotonic() + deadline_s, sink=self.log.append)

    def run(self, line: str) -> Output | None:
        name, *words = line.split()
        command = self.commands[name]
        flags: dict[str, Any] = {}
        if command.flags:
            flags, words = parse_flags(command.flags, words)
        return command.run(self.state, flags, words)

    @property
    def commands(self) -> dict[str, Command]:
        return {command.name: command for command in db_commands(self.library.db)}

    def write(self, *books: Book) -> None:
        with self.library.db.write_txn(self.library.books) as wtxn:
            self.library.books.insert_many(wtxn, books)

    def remove(self, *books: Book) -> None:
        with self.library.db.write_txn(self.library.books) as wtxn:
            for book in books:
                self.library.books.delete(wtxn, book)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


EMMA, WALDEN = Book("Emma", 1815), Book("Walden", 1854)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("db/show nothing", "has no table 'nothing'"),
        ("db/cmp nothing file", "has no table 'nothing'"),
        ("db/empty books nothing", "has no table 'nothing'"),
        ("db/initialized nothing", "has no table 'nothing'"),
        ("db/show", "expected a table"),
        ("db/get books", "expected a table and a key"),
        ("db/cmp books", "expected a table and a file"),
        ("db/insert books", "expected a table and files"),
        ("db books", "takes no arguments"),
        ("db/get books Emma -i pages", "has no index 'pages'"),
        ("db/list shelves north -i room", "index 'room' has no text parser"),
        ("db/get books late -i year", "'late' is no key"),
        ("db/prefix books 19 -i year", "int keys have no prefixes"),
        ("db/show books --columns=Pages", "no column 'Pages': there is Title, Year, Author, Tags"),
        ("db/show books --columns=Year -f json", "--columns goes with the format table only"),
        ("db/show books -f xml", "unknown format 'xml': it is one of table, json, yaml"),
        ("db/show books --at-revision=last", "'last' is no revision"),
        ("db/show books --at-revision=99", "has not reached revision 99"),
        ("db/show books --at-revision=abc:1", "is of instance abc"),
    ],
)
def test_failure_says_what_is_wrong(shell: Shell, line: str, says: str) -> None:
    shell.write(EMMA)
    with pytest.raises(StateDBError) as failure:
        shell.run(line)
    assert says in str(failure.value)


def test_empty_says_how_many_objects_there_are(shell: Shell) -> None:
    shell.write(EMMA, WALDEN)
    with pytest.raises(CommandFailed, match="table books is not empty: it has 2 objects"):
        shell.run("db/empty shelves books")


def test_commands_leave_the_buffers_alone_unless_they_print(shell: Shell) -> None:
    (shell.state.workdir / "emma.yaml").write_text("title: Emma\nyear: 1815\n")
    (shell.state.workdir / "expected").write_text("Title\nEmma\n")
    silent = ["db/insert books emma.yaml", "db/cmp books expected", "db/initialized"]
    silent += ["db/delete books emma.yaml", "db/empty books"]
    for line in silent:
        assert shell.run(line) is None, line
    for line in [
        "db",
        "db/show books",
        "db/get books Emma",
        "db/dump",
        "db/watch books --count=0 --timeout=1ms",
    ]:
        assert isinstance(shell.run(line), Output), line
    assert shell.run("db/show books -o file") == Output("")


def test_unknown_fields_are_told_and_ignored(shell: Shell) -> None:
    (shell.state.workdir / "emma.yaml").write_text("title: Emma\npages: 3\n")
    shell.run("db/insert books emma.yaml")
    assert shell.log == ["emma.yaml: Book has no field 'pages': ignored\n"]


def test_difference_shows_actual_and_expected_lines(shell: Shell) -> None:
    shell.write(Book("Dracula", 1897), EMMA, WALDEN)
    text = "Title   Year\nDracula 1897\nEmma    1816\n"
    (shell.state.workdir / "expected").write_text(text)
    with pytest.raises(TableMismatch) as failure:
        shell.run("db/cmp books expected --timeout=1ms")
    assert str(failure.value) == (
        "table mismatch:\n"
        "  Title   Year\n"
        "  Dracula 1897\n"
        "- Emma    1815\n"
        "+ Emma    1816\n"
        "- Walden  1854\n"
    )
    (shell.state.workdir / "expected").write_text(
        text.replace("1816", "1815") + "Walden  1854\nZ\n"
    )
    with pytest.raises(TableMismatch, match=r"\n  Walden  1854\n\+ Z\n$"):
        shell.run("db/cmp books expected --timeout=1ms")


def test_comparison_ends_at_once_when_the_change_comes(shell: Shell) -> None:
    (shell.state.workdir / "expected").write_text("Title\nEmma\n")
    threading.Timer(0.05, shell.write, [EMMA]).start()
    began = time.monotonic()
    shell.run("db/cmp books expected")
    assert 0.04 < time.monotonic() - began < 1


def test_comparison_is_made_only_when_the_table_changes(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0
    real = Expected.difference

    def counted(self: Expected, rows: Any) -> str | None:
        nonlocal compared
        compared += 1
        return real(self, rows)

    monkeypatch.setattr(Expected, "difference", counted)
    (shell.state.workdir / "expected").write_text("Title\nWalden\n")
    timer = threading.Timer(0.05, shell.write, [EMMA])
    timer.start()
    with pytest.raises(TableMismatch):
        shell.run("db/cmp books expected --timeout=200ms")
    timer.join()
    assert compared == 2


@pytest.mark.parametrize(
    "line", ["db/cmp books expected", "db/initialized books", "db/watch books --count=9"]
)
def test_script_deadline_is_no_ordinary_failure(tmp_path: Path, line: str) -> None:
    shell = Shell(tmp_path, deadline_s=0.05)
    (tmp_path / "expected").write_text("Title\nEmma\n")
    with shell.library.db.write_txn(shell.library.books) as wtxn:
        shell.library.books.register_initializer(wtxn, "never")
    with pytest.raises(TimeoutError):
        shell.run(line)
    assert shell.library.books.num_trackers() == 0  # the watch let go


def test_initialized_names_what_it_waits_for(shell: Shell) -> None:
    books = shell.library.books
    with shell.library.db.write_txn(books) as wtxn:
        books.register_initializer(wtxn, "reflector")
        books.register_initializer(wtxn, "restore")
    with pytest.raises(CommandFailed, match="books is not initialized: waits for reflector, res"):
        shell.run("db/initialized --timeout=1ms")


def test_watch_logs_as_it_goes_when_nothing_bounds_it(tmp_path: Path) -> None:
    shell = Shell(tmp_path, deadline_s=0.3)
    shell.write(EMMA)
    threading.Timer(0.05, shell.write, [Book("A longer title", 1900)]).start()
    threading.Timer(0.1, shell.remove, [EMMA]).start()
    with pytest.raises(TimeoutError):
        shell.run("db/watch books")
    assert shell.log == [
        "Change   Title   Year   Author    Tags\nwrite    Emma    1815   unknown   \n",
        "write    A longer title   1900   unknown   \n",
        "delete   Emma             1815   unknown   \n",
    ]


def test_deleting_what_was_found_is_told(shell: Shell) -> None:
    shell.write(EMMA, WALDEN)
    shell.run("db/lowerbound books A --delete -o file")
    assert shell.log == ["deleted 2 objects\n"]


SCRIPT = """
# As it is.
db/insert books books.yaml
db/cmp books --timeout=10ms wrong
db/cmp books right
db/cmp books --timeout=10ms --grep=Walden tabs

-- books.yaml --
title: Emma
year: 1815
---
title: Walden
year: 1854
-- wrong --
YEAR Title
1999 Nothing
-- right --
Title    Year
Emma     1815
Walden   1854
-- tabs --
Year\tTitle
"""


def test_expected_tables_are_rewritten_when_golden_files_are_updated(tmp_path: Path) -> None:
    file = tmp_path / "case.txtar"
    file.write_text(SCRIPT)
    result = run_file(file, SUITE, update=True)
    assert set(result.updated) == {"wrong", "tabs"}
    text = file.read_text()
    assert "-- wrong --\nYEAR   Title\n1815   Emma\n1854   Walden\n-- right" in text
    assert text.endswith("-- tabs --\nYear\tTitle\n1854\tWalden\n")
    run_file(file, SUITE)


def test_help_of_every_command_can_be_printed(shell: Shell) -> None:
    for command in shell.commands.values():
        text = command_help(command, verbose=True)
        assert command.name in text
        assert command.summary in text
        assert command.words is not None
        assert list(command.words()) == ["books", "shelves"]


def test_offsets_of_headings_count_bytes() -> None:
    expected = Expected.parse("Größe  X\nabc      1\n", "file")  # X stands at byte 9
    assert expected.difference([["abc", "1"]]) is None
    assert expected.join(["abc", "1"]) == "abc      1"

# SPDX-License-Identifier: Apache-2.0
"""A small application of two tables, for the scripts of testdata/statedb and the tests of what is
seen from outside.

`books` is keyed by a name in words; `shelves` by a number, with an index that has no text parser.
While it runs, nothing is written unless a command asks for it.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from cilia.script.commands import Command, CommandLike, Flag
from cilia.script.errors import CommandFailed
from cilia.script.runner import Suite
from cilia.script.state import State
from statedb import DB, Column, Index, RWTable, new_table
from statedb.shown.commands import db_commands


class Kind(enum.Enum):
    NOVEL = "novel"
    MANUAL = "manual"


class Author(msgspec.Struct, frozen=True):
    name: str
    born: int | None = None


class Book(msgspec.Struct, frozen=True):
    title: str
    year: int
    author: Author = Author("unknown")
    kind: Kind = Kind.NOVEL
    tags: tuple[str, ...] = ()
    in_print: bool = False
    path: PurePosixPath | None = None


class Shelf(msgspec.Struct, frozen=True):
    number: int
    room_name: str
    holds: frozenset[str] = frozenset()


BY_TITLE = Index("title", lambda book: book.title, parse=str)
BY_YEAR = Index("year", lambda book: book.year, unique=False, parse=int)
BY_TAG = Index("tag", keys=lambda book: book.tags, unique=False, parse=str)
BY_NUMBER = Index("number", lambda shelf: shelf.number, parse=int)
BY_ROOM = Index("room", lambda shelf: shelf.room_name, unique=False)  # no parser

BOOK_COLUMNS = (
    Column("Title", lambda book: book.title),
    Column("Year", lambda book: str(book.year)),
    Column("Author", lambda book: book.author.name),
    Column("Tags", lambda book: ", ".join(book.tags)),
)


def new_books(db: DB) -> RWTable[Book]:
    return new_table(db, "books", BY_TITLE, BY_YEAR, BY_TAG, columns=BOOK_COLUMNS, row_type=Book)


def new_shelves(db: DB) -> RWTable[Shelf]:
    return new_table(db, "shelves", BY_NUMBER, BY_ROOM, row_type=Shelf)


class Library:
    """The application of a script; `recreate` begins with an empty database."""

    def __init__(self, flags: Sequence[str]) -> None:
        self._flags = list(flags)
        self.recreate(())

    def recreate(self, flags: Sequence[str]) -> None:
        history = [flag for flag in (*self._flags, *flags) if flag.startswith("--history=")]
        self.db = DB("library", history=int(history[-1].partition("=")[2]) if history else 0)
        self.books = new_books(self.db)
        self.shelves = new_shelves(self.db)
        self.running = False
        self._initialize: dict[str, Any] = {}

    def start(self, limit_s: float) -> None:
        self.running = True

    def stop(self, limit_s: float) -> None:
        self.running = False

    def describe(self) -> str:
        return "books and shelves\n"

    def commands(self) -> list[CommandLike]:
        return [
            *db_commands(self.db),
            Command(
                "library/later",
                "write a book after a moment",
                self._later,
                "TITLE YEAR",
                flags=(Flag("after", kind="duration", default=0.05), Flag("delete")),
            ),
            Command("library/expect", "add an initializer of books", self._expect, "NAME"),
            Command("library/ready", "an initializer of books is done", self._ready, "NAME"),
        ]

    def _later(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        book = Book(args[0], int(args[1]))
        write = self.books.delete if flags["delete"] else self.books.insert

        def run() -> None:
            with self.db.write_txn(self.books) as wtxn:
                write(wtxn, book)

        threading.Timer(flags["after"], run).start()

    def _expect(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        with self.db.write_txn(self.books) as wtxn:
            self._initialize[args[0]] = self.books.register_initializer(wtxn, args[0])

    def _ready(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        if args[0] not in self._initialize:
            raise CommandFailed(f"no initializer {args[0]}")
        with self.db.write_txn(self.books) as wtxn:
            self._initialize.pop(args[0])(wtxn)


SUITE = Suite(Library, retry_interval_s=0.005, max_retry_interval_s=0.05)

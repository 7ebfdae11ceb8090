# SPDX-License-Identifier: Apache-2.0
"""Text columns: Go's tabwriter layout, choice of columns, default columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statedb import DB, Column, Index, RWTable, new_table
from statedb.errors import UnknownColumn
from statedb.shown.columns import cells, columns_of, layout, positions, select, table_text
from tests.statedb_application import Author, Book, Kind, Shelf, new_books, new_shelves

CELL = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=12)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([["A", "B", "C"]], "A    B    C\n"),  # at least 5 wide
        ([["ab", "x"]], "ab   x\n"),  # 2 + 3 = 5
        ([["abc", "x"]], "abc   x\n"),  # 3 + 3 = 6
        ([["Name", "X"], ["longer name", ""]], "Name          X\nlonger name   \n"),
        ([["A", "B"], ["", ""]], "A    B\n     \n"),
        ([["é", "B"], ["abcé", "x"]], "é      B\nabcé   x\n"),  # characters, not bytes
        ([["alone"], ["x"]], "alone\nx\n"),
        ([], ""),
        ([[]], "\n"),
    ],
)
def test_cells_are_laid_out_as_tabwriter_does(rows: list[list[str]], text: str) -> None:
    assert layout(rows) == text


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n))))
def test_every_cell_begins_at_its_column_when_laid_out(rows: list[list[str]]) -> None:
    lines = layout(rows).split("\n")[:-1]
    assert len(lines) == len(rows)
    for column in range(len(rows[0]) if rows else 0):
        longest = [max(len(row[c]) for row in rows) for c in range(column)]
        start = sum(max(5, length + 3) for length in longest)
        for row, line in zip(rows, lines, strict=True):
            assert line[start:].startswith(row[column])
            if column == len(row) - 1:
                assert line[start:] == row[column]  # no padding after the last


def test_widths_only_grow_when_they_are_remembered() -> None:
    widths: list[int] = []
    assert layout([["long name", "x"]], widths) == "long name   x\n"
    assert layout([["a", "x"]], widths) == "a           x\n"
    assert layout([], widths) == ""
    assert layout([["much longer name", "x"]], widths) == "much longer name   x\n"
    assert layout([["a", "x"]], widths) == "a                  x\n"


def test_columns_are_found_whatever_their_letter_case() -> None:
    table = new_books(DB())
    chosen = select(table.columns, ["TAGS", "title", "Title"])
    assert [column.name for column in chosen] == ["Tags", "Title", "Title"]
    with pytest.raises(
        UnknownColumn, match="no column 'Pages': there is Title, Year, Author, Tags"
    ):
        select(table.columns, ["Title", "Pages"])
    assert positions(["a", "A"], ["A"]) == [0]  # the first, if two differ in letter case only


def test_heading_is_as_typed_when_columns_are_chosen() -> None:
    table = new_books(DB())
    text = table_text(table.columns, [Book("Emma", 1815)], ["yEAR", "title"])
    assert text == "yEAR   title\n1815   Emma\n"


def test_row_stays_one_line_when_a_cell_has_line_breaks() -> None:
    column = Column("Error", lambda text: text)
    assert cells([column], "load failed:\n\tline 1\r\n") == ["load failed:  line 1  "]


def test_fields_are_the_columns_when_a_table_names_none() -> None:
    table = new_shelves(DB())
    columns = columns_of(table)
    assert [column.name for column in columns] == ["Number", "RoomName", "Holds"]
    assert cells(columns, Shelf(7, "north", frozenset("ba"))) == ["7", "north", "a, b"]


def test_field_cells_are_plain_text_whatever_the_type() -> None:
    key = Index("title", lambda book: book.title)
    columns = columns_of(new_table(DB(), "books", key, row_type=Book))
    book = Book("Emma", 1815, Author("Austen", 1775), Kind.MANUAL, ("a", "b"), True)
    assert cells(columns, book) == [
        "Emma",
        "1815",
        '{"name":"Austen","born":1775}',
        "manual",
        "a, b",
        "true",
        "",
    ]


def test_table_without_row_type_prints_its_objects() -> None:
    table: RWTable[str] = new_table(DB(), "names", Index("name", lambda name: name))
    assert table_text(columns_of(table), ["x", "y"]) == "Value\nx\ny\n"

# SPDX-License-Identifier: Apache-2.0
"""Rows as text columns.

`layout` sets cells the way Go's text/tabwriter does with a minimal width of 5 and a padding of 3,
because golden files are compared byte by byte: every column but the last is as wide as its longest
cell plus three, at least five; the last cell is written as it is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import msgspec

from statedb.errors import UnknownColumn
from statedb.shown.text import visible

if TYPE_CHECKING:
    from statedb.table import Column, Table

MIN_WIDTH = 5
PADDING = 3

_BREAKING = str.maketrans("\t\n\r", "   ")


def columns_of(table: Table[Any]) -> tuple[Column, ...]:
    """The table's columns; if it names none, one for each field of its row type."""
    if table.columns:
        return table.columns
    from statedb.table import Column  # commands, which show text, load no tables

    names: tuple[str, ...] = getattr(table.row_type, "__struct_fields__", ())
    if not names:
        return (Column("Value", str),)
    return tuple(Column(_heading(name), _field_cell(name)) for name in names)


def _heading(field: str) -> str:
    """The heading of a field; a heading is one word, since `db/cmp` splits headers at blanks.

    >>> _heading("updated_at")
    'UpdatedAt'
    """
    return "".join(word[:1].upper() + word[1:] for word in field.split("_"))


def _field_cell(field: str) -> Callable[[Any], str]:
    def cell(obj: Any) -> str:
        return _text(getattr(obj, field))

    return cell


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case enum.Enum():
            return str(value.value)
        case frozenset() | set():
            return ", ".join(sorted(map(_text, value)))
        case list() | tuple():
            return ", ".join(map(_text, value))
        case msgspec.Struct():
            return msgspec.json.encode(value, enc_hook=str).decode()
    return str(value)


def positions(known: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where each of the names stands among the known ones; letter case does not matter.

    Raises:
        UnknownColumn: a name is not among them.
    """
    places = {name.casefold(): place for place, name in reversed(list(enumerate(known)))}
    try:
        return [places[name.casefold()] for name in names]
    except KeyError as error:
        missing = next(name for name in names if name.casefold() == error.args[0])
        raise UnknownColumn(f"no column {missing!r}: there is {', '.join(known)}") from None


def select(columns: Sequence[Column], names: Sequence[str]) -> list[Column]:
    """The columns with these names, in the order asked for; as `positions`."""
    return [columns[at] for at in positions([column.name for column in columns], names)]


def cells(columns: Sequence[Column], obj: Any) -> list[str]:
    """The cells of one object; tabs and line breaks become blanks, so that a row stays one line."""
    return [column.cell(obj).translate(_BREAKING) for column in columns]


def layout(rows: Iterable[Sequence[str]], remembered: list[int] | None = None) -> str:
    """Rows of equally many cells, aligned, each ended by a newline; what a terminal would obey is
    escaped.

    The padding of the cell before the last is kept even when the last is empty. A list given as
    `remembered` keeps the widths from one call to the next, where they only grow.

    >>> print(layout([["Name", "State", "X"], ["a-long-name", "on", ""]]).replace(" ", "."), end="")
    Name..........State...X
    a-long-name...on......
    """
    rows = [[*map(visible, row)] for row in rows]
    widths = [
        max(MIN_WIDTH, max(map(len, column)) + PADDING) for column in zip(*rows, strict=True)
    ][:-1]
    if remembered is not None:
        widths = [max(pair) for pair in zip_longest(widths, remembered, fillvalue=0)]
        remembered[:] = widths
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("".join(padded) + row[-1] + "\n" if row else "\n")
    return "".join(lines)


def table_text(columns: Sequence[Column], objects: Iterable[Any], names: Sequence[str] = ()) -> str:
    """Heading and rows; with `names` only these columns, in that order, headed as typed."""
    chosen = select(columns, names) if names else columns
    heading = list(names) or [column.name for column in columns]
    return layout([heading, *(cells(chosen, obj) for obj in objects)])

# SPDX-License-Identifier: Apache-2.0
"""Rows of maps that may have many entries, shown as they are read.

A map of flows has hundreds of thousands: as a list they would need more memory than a container
may have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import click

from statedb.shown.columns import MIN_WIDTH, PADDING

__all__ = ["show_streamed"]

Row = dict[str, Any]

#: Rows that are written together; in a table they share the widths of their columns, and later
#: ones are at least as wide.
BATCH: Final = 1000


def show_streamed(rows: Iterable[Row], columns: Sequence[str], output: str) -> None:
    """A table has the columns that fit a terminal, the other forms have all."""
    form = {"json": _json, "yaml": _yaml}.get(output)
    parts = iter(_table(rows, columns) if form is None else form(rows))
    while text := "".join(islice(parts, BATCH)):
        click.echo(text, nl=False)


def _json(rows: Iterable[Row]) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield before + "  " + json.dumps(row, indent=2).replace("\n", "\n  ")
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _yaml(rows: Iterable[Row]) -> Iterator[str]:
    import yaml  # 20 ms that only this form pays

    empty = True
    for row in rows:
        empty = False
        yield yaml.safe_dump([row], sort_keys=False)
    if empty:
        yield "[]\n"


def _table(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    lines = [[column.replace("_", " ").capitalize() for column in columns]]
    widths = [MIN_WIDTH - PADDING] * len(columns)
    cells = ([str(row[column]) for column in columns] for row in rows)
    while True:
        lines += islice(cells, BATCH)
        if not lines:
            return
        longest = (max(map(len, column)) for column in zip(*lines, strict=True))
        widths = [max(pair) for pair in zip(widths, longest, strict=True)]
        yield from [_line(line, widths) for line in lines]
        lines = []


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The last cell is written as it is."""
    padded = [cell.ljust(width + PADDING) for cell, width in zip(cells, widths, strict=True)]
    return "".join(padded[:-1]) + cells[-1] + "\n"

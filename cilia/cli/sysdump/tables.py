# SPDX-License-Identifier: Apache-2.0
"""Tables of an archive, shown as those of a running agent are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cilia.cli.sysdump.archive import ArchiveError, Reader
from cilia.cli.sysdump.parts import table_part
from statedb.errors import StateDBError
from statedb.shown.columns import layout, positions
from statedb.shown.rendering import check_format, value_texts

__all__ = ["show_archived"]


def show_archived(path: Path, table: str, output: str, columns: list[str]) -> None:
    """Prints it; says on standard error where it is not complete.

    Raises:
        click.ClickException: no archive, no such table in it, or a column that it has not.
    """
    part = table_part(table, "cells" if output == "table" else "object")
    try:
        check_format(output, columns)
        reader = Reader(path)
        if part not in reader.names():
            known = sorted({name.split("/")[1].split(".")[0] for name in _tables(reader)})
            raise ArchiveError(f"{path} has no table {table}: it has {', '.join(known) or 'none'}")
        _show(reader, part, output, columns)
        if reader.error(part):
            click.echo(f"{table} is not complete: {reader.error(part)}", err=True)
        reader.close()
    except (ArchiveError, StateDBError) as error:
        raise click.ClickException(str(error)) from None


def _tables(reader: Reader) -> list[str]:
    return [name for name in reader.names() if name.startswith("tables/")]


def _show(reader: Reader, part: str, output: str, columns: list[str]) -> None:
    lines = reader.lines(part)
    try:
        head = json.loads(next(lines))
    except (StopIteration, ValueError):
        raise ArchiveError(f"{part} is empty: {reader.error(part)}") from None
    rows = _rows(lines)
    if output == "table":
        chosen = positions(head["columns"], columns or head["columns"])
        cells = [[row["cells"][at] for at in chosen] for row in rows]
        click.echo(layout([[head["columns"][at] for at in chosen], *cells]), nl=False)
    else:
        for text in value_texts((row["object"] for row in rows), output):
            click.echo(text, nl=False)


def _rows(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Up to the end of the answer, or to where it broke off."""
    for line in lines:
        row = json.loads(line)
        if "rows" in row:
            return
        yield row

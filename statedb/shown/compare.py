# SPDX-License-Identifier: Apache-2.0
"""A table against the text a person wrote: the rules of `db/cmp`.

The header's words choose the columns and their byte offsets cut the lines into cells, so values
begin exactly under their heading. A header with a tab in it switches to cells divided by tabs. Rows
and lines are compared by position; a missing or extra row is a mismatch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from statedb.errors import TableMismatch
from statedb.shown.columns import layout


class Expected:
    """An expected table: the chosen column names, and lines that wait to be compared.

    >>> expected = Expected.parse("Name   Port\\nweb    80\\n", "file")
    >>> expected.names
    ['Name', 'Port']
    >>> expected.difference([["web", "80"]]) is None
    True
    >>> print(expected.difference([["web", "8080"]]), end="")
      Name   Port
    - web    8080
    + web    80
    """

    def __init__(self, names: list[str], offsets: list[int] | None, lines: list[str]) -> None:
        self.names = names
        self.offsets = offsets  # None: cells are divided by tabs
        self.lines = lines

    @classmethod
    def parse(cls, text: str, file: str) -> Expected:
        """Reads an expected table; blank lines are dropped.

        Raises:
            TableMismatch: there is no header line.
        """
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            raise TableMismatch(f"{file} has no header line")
        header = lines.pop(0)
        if "\t" in header:
            return cls(header.split(), None, lines)
        names, offsets = _words(header)
        return cls(names, offsets, lines)

    def split(self, line: str) -> list[str]:
        """The cells of a line, blanks and tabs to their right removed; those it lacks are empty."""
        if self.offsets is None:
            parts = line.rstrip(" \t").split("\t")
            parts += [""] * (len(self.names) - len(parts))
        else:
            raw = line.encode()
            bounds = zip([0, *self.offsets[1:]], [*self.offsets[1:], None], strict=True)
            parts = [raw[start:end].decode(errors="replace") for start, end in bounds]
        return [part.rstrip(" \t") for part in parts]

    def join(self, row: Sequence[str]) -> str:
        """A row laid out as the file is; a cell that is too long moves those after it."""
        if self.offsets is None:
            return "\t".join(row)
        line, reached = "", 0
        for cell, offset in zip(row, self.offsets, strict=True):
            line += " " * (offset - reached) + cell
            reached = offset + len(cell.encode())
        return line

    def filtered(
        self, rows: Iterable[list[str]], pattern: re.Pattern[str] | None
    ) -> list[list[str]]:
        """The rows whose laid out line matches the pattern; expected lines are not filtered."""
        if pattern is None:
            return list(rows)
        return [row for row in rows if pattern.search(self.join(row))]

    def difference(self, rows: Sequence[list[str]]) -> str | None:
        """None if every row equals its line; else `- ` actual and `+ ` expected lines."""
        if [self.split(line) for line in self.lines] == rows:
            return None
        out = ["  " + self.join(self.names)]
        for row, line in zip(rows, self.lines, strict=False):
            if row == self.split(line):
                out.append("  " + self.join(row))
            else:
                out += ["- " + self.join(row), "+ " + line]
        out += ["- " + self.join(row) for row in rows[len(self.lines) :]]
        out += ["+ " + line for line in self.lines[len(rows) :]]
        return "".join(line.rstrip() + "\n" for line in out)

    def recorded(self, rows: Sequence[list[str]]) -> str:
        """The text that would have matched these rows."""
        table = [self.names, *rows]
        if self.offsets is None:
            return "".join("\t".join(row) + "\n" for row in table)
        return "".join(line.rstrip(" ") + "\n" for line in layout(table).splitlines())


def _words(header: str) -> tuple[list[str], list[int]]:
    """The words of a header line and the byte offsets at which they begin.

    The first begins at 0 whatever stands there: an indented header names no column.
    """
    matches = list(re.finditer(r"^ *[^ ]+|[^ ]+", header))
    names = [match.group() for match in matches]
    return names, [len(header[: match.start()].encode()) for match in matches]

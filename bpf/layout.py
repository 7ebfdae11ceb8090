# SPDX-License-Identifier: Apache-2.0
"""Numbers and layouts of ``lib/*_types.h`` for the codecs: each is written once, in the header.

They are read from the text at import: wheels carry the headers, and a codec works without libbpf.
There are no regular expressions here, as compiling them takes longer than reading a header. Headers
are held to what is understood (see ``lb_types.h``): explicit pads, no nested types, lists of
numbers with their texts as macros. Anything else is refused. ``tests/bpf/test_layout_reader.py``
compares the result with the C compiler's.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Final

#: What stands behind the number of a row: further numbers, and the text.
Row = tuple[tuple[int, ...], str]

LIB: Final = Path(__file__).resolve().parent / "lib"

#: Code of ``struct`` and size of each type; a field in network byte order stays bytes.
_TYPES: Final = {
    "__u8": ("B", 1),
    "__s8": ("b", 1),
    "__u16": ("H", 2),
    "__s16": ("h", 2),
    "__u32": ("I", 4),
    "__s32": ("i", 4),
    "__u64": ("Q", 8),
    "__s64": ("q", 8),
    "__be16": ("2s", 2),
    "__be32": ("4s", 4),
    "__be64": ("8s", 8),
}


class Header:
    """The defines, lists and structs of one header.

    Raises: ValueError for a line that is none of these.
    """

    def __init__(self, text: str) -> None:
        #: All numbers, also those of lists.
        self.defines: Final[dict[str, int]] = {}
        #: Of each number in a list, the rest of its row.
        self.rows: Final[dict[str, Row]] = {}
        self._bodies: Final[dict[str, list[str]]] = {}
        body: list[str] | None = None
        for line in without_comments(text).splitlines():
            words = line.split()
            if not words or words == ["};"]:
                continue
            if line[0] == "\t" and "(" in line:
                self._add_row(line)
            elif line[0] == "\t" and body is not None:
                body.append(line)
            elif words[0] == "struct" and words[2:] == ["{"]:
                body = self._bodies[words[1]] = []
            elif words[0] == "#define" and len(words) == 3 and "(" not in line:
                self.defines[words[1]] = int(words[2], 0)
            elif words[0] == "enum" and words[2:] == ["{"]:
                body = None  # it names the list that it is made of
            elif words != ["#pragma", "once"] and not ("#define" in words and "(" in words[1]):
                raise ValueError(f"{line!r} cannot be read")

    def _add_row(self, line: str) -> None:
        """Add a row of a list, such as ``reason(DROP_NO_SERVICE, -4, 158, "text")``."""
        columns, comma, text = line.partition("(")[2].rstrip(" )\\").partition(', "')
        if comma:  # else a list is used, with a macro for its rows
            name, number, *others = columns.split(", ")
            self.defines[name] = int(number, 0)
            self.rows[name] = tuple(map(int, others)), text.removesuffix('"')

    @property
    def structs(self) -> Collection[str]:
        """Names of the structs."""
        return self._bodies.keys()

    def numbers(self, prefix: str) -> dict[str, int]:
        """Return the defines that begin with `prefix`, by the rest of their name."""
        return {
            name.removeprefix(prefix): number
            for name, number in self.defines.items()
            if name.startswith(prefix)
        }

    def texts(self, prefix: str) -> dict[int, str]:
        """Return the texts of the rows whose names begin with a prefix, by number."""
        return {
            self.defines[name]: text
            for name, (_, text) in self.rows.items()
            if name.startswith(prefix)
        }

    def struct(
        self, name: str, *, raw: Collection[str] = (), skipped: Collection[str] = ()
    ) -> Struct:
        """Return the codec of a struct: its fields in order, without pads and those `skipped`.

        Arrays, and the fields that `raw` names, are bytes.
        """
        codes = []
        for field, (code, place) in self._fields(name).items():
            if field.startswith("pad") or field in skipped:
                code = f"{place.stop - place.start}x"
            elif field in raw:
                code = f"{place.stop - place.start}s"
            codes.append(code)
        return Struct("=" + "".join(codes))

    def places(self, name: str) -> dict[str, slice]:
        """Return where each field of a struct stands in its bytes."""
        return {field: place for field, (_, place) in self._fields(name).items()}

    def _fields(self, struct: str) -> dict[str, tuple[str, slice]]:
        """Return code and place of each field, in order.

        Raises: ValueError for a field that cannot be read.
        """
        fields: dict[str, tuple[str, slice]] = {}
        start = 0
        for declaration in self._bodies[struct]:
            try:
                name, code, size = _field(declaration)
            except (ValueError, KeyError):
                text = declaration.strip()
                raise ValueError(f"struct {struct}: {text!r} cannot be read") from None
            fields[name] = code, slice(start, start + size)
            start += size
        return fields


def _field(declaration: str) -> tuple[str, str, int]:
    """Return name, code and size. Raises: ValueError, KeyError."""
    kind, declared = declaration.rstrip().removesuffix(";").split()
    name, array, count = declared.partition("[")
    if not name.isidentifier():
        raise ValueError(name)
    code, size = _TYPES[kind]
    if array:
        size *= int(count.removesuffix("]"))
        code = f"{size}s"
    return name, code, size


def without_comments(text: str) -> str:
    """Return the text without what stands between ``/*`` and ``*/``."""
    first, *rest = text.split("/*")
    return first + "".join(part.partition("*/")[2] for part in rest)


@cache
def header(name: str) -> Header:
    """Read a header of ``lib`` once, such as ``lb_types.h``."""
    return Header((LIB / name).read_text())

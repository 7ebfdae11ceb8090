# SPDX-License-Identifier: Apache-2.0
"""The reader of the shared headers finds what the C compiler makes of them, and nothing else."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from bpf.layout import LIB, Header, header
from bpf.libbpf import ffi, lib

HEADERS = {path.name: header(path.name) for path in sorted(LIB.glob("*_types.h"))}
TEXT = "".join(path.read_text() for path in sorted(LIB.glob("*_types.h")))
STRUCTS = [(name, struct) for name, read in HEADERS.items() for struct in read.structs]


def fields(struct: str) -> dict[str, Any]:
    return dict(ffi.typeof(f"struct {struct}").fields)


@pytest.mark.parametrize(("name", "struct"), STRUCTS)
def test_each_field_stands_where_the_compiler_puts_it(name: str, struct: str) -> None:
    theirs = {
        field: slice(found.offset, found.offset + ffi.sizeof(found.type))
        for field, found in fields(struct).items()
    }
    assert HEADERS[name].places(struct) == theirs
    assert HEADERS[name].struct(struct).size == ffi.sizeof(f"struct {struct}")


@pytest.mark.parametrize(("name", "struct"), STRUCTS)
def test_each_value_is_read_as_the_compiler_reads_it(name: str, struct: str) -> None:
    """All bytes differ and have the highest bit: a wrong size, sign or order shows."""
    written = bytes(0x80 + at % 0x80 for at in range(ffi.sizeof(f"struct {struct}")))
    view = ffi.from_buffer(f"struct {struct} *", written)
    theirs = [getattr(view, field) for field in fields(struct) if not field.startswith("pad")]
    ours = HEADERS[name].struct(struct).unpack(written)
    for value, compiled in zip(ours, theirs, strict=True):
        if not isinstance(value, bytes):
            assert value == compiled
        elif isinstance(compiled, int):  # network order stays as it is
            assert value == compiled.to_bytes(len(value), sys.byteorder)
        else:
            assert value == bytes(ffi.buffer(compiled))


def test_numbers_are_those_of_the_compiler() -> None:
    ours = {name: number for read in HEADERS.values() for name, number in read.defines.items()}
    found = re.findall(r"^(?:#define (\w+) |\t\w+\((\w+), )", TEXT, re.MULTILINE)
    names = [define or row for define, row in found]
    assert ours == {name: getattr(lib, name) for name in names}
    assert len(names) == len(ours)


def test_a_list_has_all_columns_of_its_rows() -> None:
    rows = ['row(A_ONE, -1, 7, "one, and (more)")', 'row(A_TWO, 0x2, "")']
    text = "#define LIST(row) \\\n\t" + " \\\n\t".join(rows) + "\n"
    use = "#define NUMBER(name, number, ...) name = number,\nenum a {\n\tLIST(NUMBER)\n};\n"
    read = Header(text + use)
    assert read.rows == {"A_ONE": ((7,), "one, and (more)"), "A_TWO": ((), "")}
    assert read.numbers("A_") == {"ONE": -1, "TWO": 2}


def test_every_struct_that_the_headers_declare_is_read() -> None:
    _, declared, _ = ffi.list_types()
    assert {struct for _, struct in STRUCTS} == {s for s in declared if f"struct {s} {{" in TEXT}
    assert len(STRUCTS) == TEXT.count("\nstruct ")


@pytest.mark.parametrize("line", ["typedef int a;", "\t__u32 a;", "enum a {\n\tA,\n};", "#if 1"])
def test_a_line_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Header(line + "\n")


@pytest.mark.parametrize("field", ["struct inner x;", "__u32 a : 3;", "__u32 a[N];", "int a;"])
def test_a_field_that_cannot_be_read_is_refused_not_skipped(field: str) -> None:
    read = Header(f"struct odd {{\n\t__u32 first;\n\t{field}\n}};\n")
    with pytest.raises(ValueError, match="struct odd"):
        read.struct("odd")

# SPDX-License-Identifier: Apache-2.0
"""Maglev tables in C: ten thousand of them are 160 million positions."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from bpf.libbpf import check, ffi, lib


class Turn(NamedTuple):
    """One that takes turns: it wants the positions offset, offset + skip, … modulo the size."""

    offset: int
    skip: int
    weight: int
    number: int


def fill(turns: Sequence[Turn], size: int) -> bytes:
    """A table of ``size`` 32-bit words in host order, each the ``number`` of whose position it is.

    Each takes, when it is its turn, the first free of the positions that it wants. Turns go round,
    and with weights above 1 who has had his share sits out. ``size`` is a prime; offsets are below
    it, skips from 1 below it.

    Raises: Invalid without turns or with more of them than positions.
    """
    columns = [array("I", column) for column in zip(*turns, strict=True)] or [array("I")] * 4
    table = ffi.new("uint32_t[]", size)
    pointers = [ffi.from_buffer("uint32_t[]", column) for column in columns]
    check(lib.cilia_maglev_fill(*pointers, len(turns), size, table), "fill Maglev table")
    return bytes(ffi.buffer(table))

# SPDX-License-Identifier: Apache-2.0
"""Names of what the datapath says in numbers: drop reasons, and the source files that report.

Read from the headers themselves, where each reason stands once with its explanation: a reason that
is new there is named here. Needs no libbpf.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from bpf.layout import LIB, header

_DEFINE = re.compile(r"^#define (?P<name>\w+)\s+(?P<number>-?\d+)\s*(?:/\* (?P<text>.*?) \*/)?")


class Reason(NamedTuple):
    """One reason: its C name without the prefix, and what it means where the name is not enough."""

    name: str
    text: str

    def __str__(self) -> str:
        words = self.name.replace("_", " ").lower()
        return f"{words}: {self.text}" if self.text else words


def reasons() -> dict[int, Reason]:
    """Every ``DROP_*`` by its number, which is negative; 0 is what was forwarded."""
    return {0: Reason("FORWARDED", ""), **_defines("drop_types.h", "DROP_")}


def reason_label(number: int) -> str:
    """For metrics: words with blanks, as short as the name. What is not known is its number."""
    found = reasons().get(number)
    return found.name.replace("_", " ").lower() if found else str(number)


def file_label(number: int) -> str:
    """Name of a file that reports (``FILE_*``)."""
    for name, file in header("event_types.h").numbers("FILE_").items():
        if file == number:
            return name.lower().replace("_bpf_c", ".bpf.c").replace("_h", ".h")
    return str(number)


@cache
def _defines(header: str, prefix: str) -> dict[int, Reason]:
    found = map(_DEFINE.match, (LIB / header).read_text().splitlines())
    return {
        int(match["number"]): Reason(match["name"].removeprefix(prefix), match["text"] or "")
        for match in found
        if match and match["name"].startswith(prefix)
    }

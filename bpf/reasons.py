# SPDX-License-Identifier: Apache-2.0
"""Names of what the datapath says in numbers: drop reasons, and the source files that report.

Read from the headers themselves, where each reason stands once with its explanation: a reason that
is new there is named here. Needs no libbpf.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from bpf.layout import header


class Reason(NamedTuple):
    """One reason: its C name without the prefix, and its meaning where the name is not enough."""

    name: str
    text: str
    #: The nearest DropReason of Cilium's flows; 0 for what is forwarded.
    flow_number: int

    @property
    def label(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ").lower()

    def __str__(self) -> str:
        return f"{self.label}: {self.text}" if self.text else self.label


@cache
def reasons() -> dict[int, Reason]:
    """Return every ``DROP_*`` by its number, which is negative; 0 is what was forwarded."""
    listed = header("drop_types.h")
    found = {0: Reason("FORWARDED", "", 0)}
    for name, ((flow_number,), text) in listed.rows.items():
        found[listed.defines[name]] = Reason(name.removeprefix("DROP_"), text, flow_number)
    return found


def reason_label(number: int) -> str:
    """For metrics: words with blanks, as short as the name. What is not known is its number."""
    found = reasons().get(number)
    return found.label if found else str(number)


@cache
def file_label(number: int) -> str:
    """Name of a file that reports (``FILE_*``)."""
    return header("event_types.h").texts("FILE_").get(number, str(number))

# SPDX-License-Identifier: Apache-2.0
"""Names of what the datapath says in numbers: drop reasons, and the source files that report.

Read from the headers themselves, where each reason stands once with its explanation: a reason that
is new there is named here. Needs no libbpf.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from bpf.layout import header

#: Texts of the numbers of flows that our reasons have.
FLOW_TEXTS: Final = {
    130: "Invalid source mac",
    132: "Invalid source ip",
    133: "Policy denied",
    134: "Invalid packet",
    136: "Fragmentation needed",
    139: "Unsupported L3 protocol",
    141: "Error writing to packet",
    153: "Error while correcting L3 checksum",
    154: "Error while correcting L4 checksum",
    155: "CT: Map insertion failed",
    156: "Invalid IPv6 extension header",
    158: "Service backend not found",
    167: "No mapping for NAT masquerade",
    168: "Unsupported protocol for NAT masquerade",
    169: "FIB lookup failed",
    172: "Unknown sender",
    174: "Is a ClusterIP",
    175: "First logical datagram fragment not found",
    176: "Forbidden ICMPv6 message",
    177: "Denied by LB src range check",
    196: "TTL exceeded",
    203: "Endpoint policy program not available",
}


class Reason(NamedTuple):
    """One reason: its C name without the prefix, and its meaning where the name is not enough."""

    name: str
    text: str
    #: The nearest DropReason of Cilium's flows; 0 for what is forwarded.
    flow_number: int

    @property
    def flow_text(self) -> str:
        """Return the text that clients of flows have for that number."""
        return FLOW_TEXTS.get(self.flow_number, "")

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

# SPDX-License-Identifier: Apache-2.0
"""The programs of packets: what they are told, how large their maps are.

`bpf/datapath.py` loads them together with the programs of sockets; which device gets which program
is rows of the table ``attachments``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class PacketConfig(NamedTuple):
    """Which objects, what they are told, and how large their maps are."""

    objects: Sequence[str]
    #: ``const volatile`` variables by name; each is given to every object that has it.
    constants: Mapping[str, bytes]
    #: Entries by map, where they differ from the source.
    entries: Mapping[str, int]
    #: Programs of these objects that nobody attaches: they are not verified.
    unwanted: frozenset[str] = frozenset()


#: Maps that programs write and that a successor takes over.
FLOW_MAPS = frozenset(
    {
        "cilia_ct4_tcp",
        "cilia_ct4_any",
        "cilia_ct6_tcp",
        "cilia_ct6_any",
        "cilia_snat4",
        "cilia_snat6",
        "cilia_frag4",
        "cilia_frag6",
    }
)

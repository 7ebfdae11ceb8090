# SPDX-License-Identifier: Apache-2.0
"""Protocols of entries have the names that the numbers of the system have."""

from __future__ import annotations

import socket

from bpf.maps.text import PROTOCOL_NAMES, protocol_name


def test_protocols_are_those_of_the_system() -> None:
    for name in ("TCP", "UDP", "SCTP", "ICMP", "ICMPv6"):
        assert protocol_name(getattr(socket, f"IPPROTO_{name.upper()}")) == name
    assert {protocol_name(number) for number in PROTOCOL_NAMES} == {"TCP", "UDP", "SCTP"}


def test_a_protocol_without_a_name_is_its_number() -> None:
    assert protocol_name(253) == "253"

# SPDX-License-Identifier: Apache-2.0
"""Events, and records of them, as tests need them."""

from __future__ import annotations

import ipaddress
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bpf.events import HEADER, VERSION, Direction, Event, EventKind
from bpf.records import Batch

SYN = bytes(
    Ether(src="02:00:00:00:01:01", dst="02:00:00:00:00:01")
    / IP(src="10.0.0.1", dst="10.0.0.2")
    / TCP(sport=33, dport=80, flags="S")
)

#: As a program of a pod's device reports it.
FORGED: dict[str, Any] = {
    "kind": EventKind.DROP,
    "cpu": 1,
    "time_ns": 7_000_000_000,
    "ifindex": 7,
    "source_identity": 1234,
    "source_endpoint": 5,
    "reason": -22,
    "file": 20,
    "line": 52,
    "direction": Direction.EGRESS,
    "flow_hash": 0xBEEF,
}


def event(data: bytes = SYN, **fields: Any) -> Event:
    """An event; what is not given is 0."""
    empty: dict[str, Any] = dict.fromkeys(Event.__struct_fields__, 0)
    empty |= {"original_source": bytes(16), "original_length": len(data), "data": data}
    return Event(**{**empty, **fields})


def address(text: str) -> bytes:
    """As `original_source` has it."""
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def record(made: Event) -> bytes:
    """The record of an event, as a program writes it."""
    fields = [getattr(made, name) for name in Event.__struct_fields__ if name != "data"]
    kind, *others = fields
    captured_at = Event.__struct_fields__.index("original_length") - 1
    others.insert(captured_at, len(made.data))
    return HEADER.pack(VERSION, kind, HEADER.size, *others) + made.data


def batch(*events: Event) -> Batch:
    raw = b""
    for one in map(record, events):
        raw += len(one).to_bytes(4, "little") + bytes(4) + one + bytes(-len(one) % 8)
    return Batch(raw, len(events))

# SPDX-License-Identifier: Apache-2.0
"""Events as people and programs read them: a line, some lines, or an object.

Forms and words are those of the field's monitor. A drop is named by the reason that the clients of
flows know; our own name follows where several of ours share that one.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from ipaddress import ip_address
from typing import Any, Final

from bpf.events import FLOW_STATES, TRACE_POINTS, Direction, Event, EventFlag, EventKind
from bpf.reasons import file_label, reason_label, reasons
from cilia.flows.packets import Packet, dissect
from tables.identity.identities import RESERVED

__all__ = ["RULE", "event_object", "hex_dump", "line", "lost_line", "lost_object", "paragraph"]

#: Between two events of several lines.
RULE: Final = "-" * 78

#: Endpoints of both ends stand in a trace's first words.
_ENDPOINT: Final = "endpoint"


def line(event: Event, *, numeric: bool = False) -> str:
    """Return one line."""
    who, packet = _identities(event, numeric), dissect(event.data).text
    if event.kind == EventKind.DROP:
        return (
            f"xx drop ({reason_text(event.reason)}) flow {event.flow_hash:#x}"
            f" to endpoint {event.destination_endpoint}, ifindex {event.ifindex},"
            f" file {file_label(event.file)}:{event.line}, identity {who}: {packet}"
        )
    return (
        f"{_summary(event)} flow {event.flow_hash:#x}, identity {who} state {_state(event)}"
        f" ifindex {event.ifindex} orig-ip {_original(event)}: {packet}"
    )


def paragraph(event: Event, *, numeric: bool = False, as_hex: bool = False) -> str:
    """Return several lines: all that is known, and the packet or its bytes."""
    who, size = _identities(event, numeric), f"{event.original_length} bytes"
    head = f"CPU {event.cpu:02d}: MARK {event.mark:#x} FROM {event.source_endpoint}"
    told = [f"{size} ({len(event.data)} captured)"]
    if event.kind == EventKind.DROP:
        told += [f"reason {_reason(event.reason)}"]
        told += [f"file {file_label(event.file)}:{event.line}"]
        head += " DROP"
    else:
        told += [f"state {_state(event)}", f"orig-ip {_original(event)}"]
        head += f" {_point(event)}"
    told += [f"ifindex {event.ifindex}", f"identity {who}"]
    told += [f"to endpoint {event.destination_endpoint}", _direction(event)]
    packet = dissect(event.data)
    body = hex_dump(event.data)
    if not as_hex:
        body = f"{packet.ethernet_source} -> {packet.ethernet_destination}\n{packet.text}"
    return f"{RULE}\n{head}: {', '.join(filter(None, told))}\n{body}"


def event_object(event: Event) -> dict[str, Any]:
    """Return an object for programs, with the field's names where it has one."""
    packet = dissect(event.data)
    told: dict[str, Any] = {
        "cpu": f"CPU {event.cpu:02d}:",
        "type": _type(event),
        "mark": f"{event.mark:#x}",
        "ifindex": event.ifindex,
        "source": event.source_endpoint,
        "destination": event.destination_endpoint,
        "srcLabel": event.source_identity,
        "dstLabel": event.destination_identity,
        "bytes": event.original_length,
        "direction": _direction(event),
        "flow": f"{event.flow_hash:#x}",
        "monotonicNS": event.time_ns,
    }
    if event.kind == EventKind.DROP:
        reason = reasons().get(event.reason)
        told |= {
            "reason": reason_text(event.reason),
            "reasonNumber": reason.flow_number if reason else 0,
            "dropName": reason_label(event.reason),
            "file": file_label(event.file),
            "line": event.line,
        }
    else:
        told |= {
            "observationPoint": _point(event),
            "traceSummary": _summary(event),
            "state": _state(event),
            "origIP": _original(event),
        }
        if event.flow_state:
            told["isReply"] = bool(event.flags & EventFlag.REPLY)
    return told | {"summary": _packet_object(packet), "packet": packet.text}


def lost_line(count: int, at: str, kind: int | None) -> str:
    """Return the line about events that nobody can tell any more. `at`: `ring` or `reader`."""
    if at == "ring":
        return f"Lost {count} events ({_kind_name(kind)}): the ring buffer was full"
    return f"Lost {count} events: this command was too slow"


def lost_object(count: int, at: str, kind: int | None) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "lost", "count": count, "at": at}
    return told if kind is None else told | {"kind": _kind_name(kind)}


def reason_text(number: int) -> str:
    """Return the field's text, with our own name where that says less.

    >>> reason_text(-22), reason_text(-19)
    ('Invalid source ip', 'Service backend not found, loopback only')
    """
    reason = reasons().get(number)
    if reason is None:
        return str(number)
    text = reason.flow_text or reason.label
    return f"{text}, {reason.label}" if _shared()[reason.flow_number] > 1 else text


def _reason(number: int) -> str:
    """Return the field's text, and our reason with its meaning."""
    reason = reasons().get(number)
    return f"{reason.flow_text} ({reason})" if reason else str(number)


@cache
def _shared() -> Counter[int]:
    """Return how many of our reasons have each number of flows."""
    return Counter(reason.flow_number for reason in reasons().values())


def hex_dump(data: bytes) -> str:
    """Return rows of 16 bytes with their offset, and as text."""
    rows = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        rows.append(f"{at:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  |{text}|")
    return "\n".join(rows)


def _identities(event: Event, numeric: bool) -> str:
    names = {0: "unknown"} if numeric else {0: "unknown", **RESERVED}
    both = (event.source_identity, event.destination_identity)
    return "->".join(names.get(number, str(number)) for number in both)


def _kind_name(kind: int | None) -> str:
    return EventKind(kind).name.lower() if kind in set(EventKind) else str(kind)


def _type(event: Event) -> str:
    return _kind_name(event.kind)


def _point(event: Event) -> str:
    return TRACE_POINTS.get(event.observation_point, str(event.observation_point))


def _state(event: Event) -> str:
    return FLOW_STATES.get(event.flow_state, str(event.flow_state))


def _direction(event: Event) -> str:
    return Direction(event.direction).name.lower() if event.direction in set(Direction) else ""


def _summary(event: Event) -> str:
    """Return where a packet goes to or comes from: `-> endpoint 7`, `<- network`."""
    way, _, place = _point(event).partition("-")
    if place == _ENDPOINT:
        number = event.destination_endpoint if way == "to" else event.source_endpoint
        place = f"{place} {number}"
    return f"{'->' if way == 'to' else '<-'} {place}"


def _original(event: Event) -> str:
    if event.flags & EventFlag.V6:
        return str(ip_address(event.original_source))
    return str(ip_address(event.original_source[:4]))


def _packet_object(packet: Packet) -> dict[str, Any]:
    told: dict[str, Any] = {
        "l2": {"src": packet.ethernet_source, "dst": packet.ethernet_destination},
        "l3": {"src": packet.source, "dst": packet.destination},
        "protocol": packet.protocol,
        "detail": packet.detail,
    }
    if packet.source_port is not None:
        told["l4"] = {"src": packet.source_port, "dst": packet.destination_port}
    return told

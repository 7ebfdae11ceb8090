# SPDX-License-Identifier: Apache-2.0
"""Events as `cilia monitor` shows them, word for word."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bpf.events import Direction, Event, EventFlag, EventKind
from bpf.reasons import reasons
from cilia.flows import lines
from tests.cilia.flows.made import FORGED, address, event

DELIVERED: dict[str, Any] = {
    "kind": EventKind.TRACE,
    "cpu": 12,
    "observation_point": 101,
    "flow_state": 1,
    "ifindex": 9,
    "mark": 0xF00,
    "source_identity": 300,
    "source_endpoint": 7,
    "destination_identity": 301,
    "destination_endpoint": 8,
    "direction": Direction.INGRESS,
}
TRANSLATED = {
    **DELIVERED,
    "observation_point": 11,
    "flow_state": 3,
    "flags": EventFlag.REPLY | EventFlag.V6,
    "original_source": address("fd00::7"),
    "destination_identity": 2,
    "destination_endpoint": 0,
}

SHOWN: dict[str, tuple[Event, str]] = {
    "drop": (
        event(**FORGED),
        "xx drop (Invalid source ip) flow 0xbeef to endpoint 0, ifindex 7, file endpoint.h:52,"
        " identity 1234->unknown: 10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    ),
    "reason that shares its number": (
        event(**{**FORGED, "reason": -19, "source_identity": 1, "destination_identity": 2}),
        "xx drop (Service backend not found, loopback only) flow 0xbeef to endpoint 0, ifindex 7,"
        " file endpoint.h:52, identity host->world: 10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    ),
    "reason of another build": (
        event(**{**FORGED, "reason": -9999, "file": 250, "data": b""}),
        "xx drop (-9999) flow 0xbeef to endpoint 0, ifindex 7, file 250:52,"
        " identity 1234->unknown: [unknown]",
    ),
    "to a pod": (
        event(**DELIVERED),
        "-> endpoint 8 flow 0x0, identity 300->301 state new ifindex 9 orig-ip 0.0.0.0:"
        " 10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    ),
    "from a pod": (
        event(**{**DELIVERED, "observation_point": 5, "flow_state": 0}),
        "<- endpoint 7 flow 0x0, identity 300->301 state unknown ifindex 9 orig-ip 0.0.0.0:"
        " 10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    ),
    "to the network, translated": (
        event(**TRANSLATED),
        "-> network flow 0x0, identity 300->world state reply ifindex 9 orig-ip fd00::7:"
        " 10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    ),
    "from the network": (
        event(**{**DELIVERED, "observation_point": 10}),
        "<- network flow 0x0, identity 300->301 state new ifindex 9 orig-ip 0.0.0.0:"
        " 10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_event_is_one_line(name: str) -> None:
    made, text = SHOWN[name]
    assert lines.line(made) == text


def test_identities_can_be_numbers() -> None:
    made = event(**TRANSLATED)
    assert "identity 300->world " in lines.line(made)
    assert "identity 300->2 " in lines.line(made, numeric=True)
    assert "identity 300->2," in lines.paragraph(made, numeric=True)


def test_each_reason_has_a_text() -> None:
    texts = {lines.reason_text(number) for number in reasons() if number}
    assert len(texts) == len(reasons()) - 1


PARAGRAPHS = {
    "drop": (
        event(**FORGED),
        "CPU 01: MARK 0x0 FROM 5 DROP: 54 bytes (54 captured), reason Invalid source ip"
        " (invalid source: the source is no address of the endpoint), file endpoint.h:52,"
        " ifindex 7, identity 1234->unknown, to endpoint 0, egress",
    ),
    "trace": (
        event(**TRANSLATED),
        "CPU 12: MARK 0xf00 FROM 7 to-network: 54 bytes (54 captured), state reply, orig-ip"
        " fd00::7, ifindex 9, identity 300->world, to endpoint 0, ingress",
    ),
}


@pytest.mark.parametrize("name", PARAGRAPHS)
def test_event_is_several_lines(name: str) -> None:
    made, head = PARAGRAPHS[name]
    assert lines.paragraph(made).splitlines() == [
        lines.RULE,
        head,
        "02:00:00:00:01:01 -> 02:00:00:00:00:01",
        "10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    ]
    rows = lines.paragraph(made, as_hex=True).splitlines()[2:]
    assert rows[0] == (
        "00000000  02 00 00 00 00 01 02 00  00 00 01 01 08 00 45 00  |..............E.|"
    )
    assert rows[-1] == f"00000030  {made.data[48:].hex(' '):23}  {'':23}  | .{{o..|"


def test_event_is_an_object() -> None:
    packet = {
        "l2": {"src": "02:00:00:00:01:01", "dst": "02:00:00:00:00:01"},
        "l3": {"src": "10.0.0.1", "dst": "10.0.0.2"},
        "protocol": "tcp",
        "detail": "SYN",
        "l4": {"src": 33, "dst": 80},
    }
    assert json.loads(json.dumps(lines.event_object(event(**FORGED)))) == {
        "cpu": "CPU 01:",
        "type": "drop",
        "mark": "0x0",
        "ifindex": 7,
        "source": 5,
        "destination": 0,
        "srcLabel": 1234,
        "dstLabel": 0,
        "bytes": 54,
        "direction": "egress",
        "flow": "0xbeef",
        "monotonicNS": 7_000_000_000,
        "reason": "Invalid source ip",
        "reasonNumber": 132,
        "dropName": "invalid source",
        "file": "endpoint.h",
        "line": 52,
        "summary": packet,
        "packet": "10.0.0.1:33 -> 10.0.0.2:80 tcp SYN",
    }
    trace = lines.event_object(event(**TRANSLATED))
    assert {name: trace[name] for name in ("observationPoint", "traceSummary", "state")} == {
        "observationPoint": "to-network",
        "traceSummary": "-> network",
        "state": "reply",
    }
    assert (trace["origIP"], trace["isReply"]) == ("fd00::7", True)
    unknown = lines.event_object(event(**{**DELIVERED, "flow_state": 0}))
    assert "isReply" not in unknown


def test_losses_are_told() -> None:
    assert lines.lost_line(3, "ring", 1) == "Lost 3 events (drop): the ring buffer was full"
    assert lines.lost_line(3, "ring", 15) == "Lost 3 events (15): the ring buffer was full"
    assert lines.lost_line(4, "reader", None) == "Lost 4 events: this command was too slow"
    assert lines.lost_object(3, "ring", 2) == {
        "type": "lost",
        "count": 3,
        "at": "ring",
        "kind": "trace",
    }
    assert lines.lost_object(3, "reader", None) == {"type": "lost", "count": 3, "at": "reader"}

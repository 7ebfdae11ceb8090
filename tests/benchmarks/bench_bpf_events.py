# SPDX-License-Identifier: Apache-2.0
"""Events a second from the ring buffer to Python objects, and what reporting one costs a program.

``gather`` empties the buffer into batches (in C), ``decode`` also makes an ``Event`` of each
record. The mark of the project is 50,000 a second on a node without a loss.
"""

from __future__ import annotations

import os
import time

from bpf.events import Decoder, EventKind
from bpf.maps import listeners
from bpf.object import Object
from bpf.program import Program
from bpf.ringbuf import Reader
from tests.benchmarks.report import Report, alternated
from tests.bpf.sources import build

EVENTS = 50_000
RING_BYTES = 1 << 24
PACKET = bytes(200)

SOURCE = """
#include "lib/event.h"
SEC("tc") int refuse(struct __sk_buff *skb)
{
    return drop(skb, DROP_NO_BACKEND, DIRECTION_EGRESS) ? 0 : 2;
}
SEC("tc") int nothing(struct __sk_buff *skb) { return 2; }
"""


def run(*, peers: bool) -> None:
    report = Report(f"events, {EVENTS} records with 128 bytes of packet each")
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    with Object.open("bench", build(SOURCE)) as obj:
        obj.set_max_entries("cilia_events", RING_BYTES)
        obj.load()
        with obj.map(listeners.NAME) as raw:
            listeners.Listeners(raw).kinds = {EventKind.DROP}
        refuse, nothing = obj.program("refuse"), obj.program("nothing")
        with obj.map("cilia_events") as ring, Reader.ring(ring) as reader:
            gather, decode, cost = alternated(
                [
                    lambda: _rate(refuse, reader, decode=False),
                    lambda: _rate(refuse, reader, decode=True),
                    lambda: _cost_ns(refuse, nothing, reader),
                ],
                5,
            )
    report.row("events.gather", gather, "events/s")
    report.row("events.decode", decode, "events/s")
    report.row("events.report", cost, "ns", higher_is_better=False)


def _rate(refuse: Program, reader: Reader, *, decode: bool) -> float:
    refuse.run(PACKET, repeat=EVENTS)
    start = time.perf_counter()
    seen = _drain(reader, decode=decode)
    assert seen == EVENTS, f"{EVENTS - seen} events were lost"
    return EVENTS / (time.perf_counter() - start)


def _cost_ns(refuse: Program, nothing: Program, reader: Reader) -> float:
    cost = refuse.run(PACKET, repeat=EVENTS).duration_ns
    _drain(reader, decode=False)
    return cost - nothing.run(PACKET, repeat=EVENTS).duration_ns


def _drain(reader: Reader, *, decode: bool) -> int:
    decoder, seen = Decoder(), 0
    while (batch := reader.read()).size:
        seen += sum(1 for _ in decoder.decode(batch.records())) if decode else batch.size
    return seen

# SPDX-License-Identifier: Apache-2.0
"""Records from the datapath: layout, batches, exact counts of what was lost."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from bpf import events, reasons
from bpf.events import Decoder, Event, EventKind, Layer
from bpf.layout import LIB
from bpf.libbpf import ffi, lib
from bpf.maps import listeners
from bpf.maps.map import Map
from bpf.maps.percpu import PerCpuMap
from bpf.maps.types import MapType
from bpf.object import Object
from bpf.ringbuf import BATCH_BYTES, Reader
from tests.bpf.sources import HEAD, build
from tests.bpf.world import open_descriptors

SOURCE = """
#include "lib/event.h"
SEC("tc") int refuse(struct __sk_buff *skb)
{
    drop(skb, DROP_NO_BACKEND, DIRECTION_EGRESS);
    return 0;
}
"""

#: Where the drop stands in what is compiled.
DROP_LINE = 1 + (HEAD + SOURCE).split("drop(")[0].count("\n")

PACKET = bytes(range(200))


def test_header_is_the_c_struct() -> None:
    assert events.HEADER.size == ffi.sizeof("struct event_header")
    raw = bytearray(events.HEADER.size + 4)
    view = ffi.from_buffer("struct event_header *", raw)
    view.version, view.header_size, view.captured_length = lib.EVENT_VERSION, len(raw) - 4, 3
    numbers = {
        name: -number if name in ("reason", "extension") else number
        for number, name in enumerate(Event.__struct_fields__, start=1)
        if name not in ("data", "original_source")
    }
    for name, number in numbers.items():
        setattr(view, name, number)
    ffi.memmove(view.original_source, bytes(range(16)), 16)
    raw[-4:] = b"abcd"
    (event,) = Decoder().decode([memoryview(raw)])
    assert {name: getattr(event, name) for name in numbers} == numbers
    assert event.original_source == bytes(range(16))
    assert event.data == b"abc"


def header_1(view: Any, data: bytes = b"") -> bytes:
    """A record as programs of version 1 write it: the first fields of today's header."""
    view.version, view.header_size, view.captured_length = 1, lib.EVENT_HEADER_1_BYTES, len(data)
    return bytes(ffi.buffer(view))[: lib.EVENT_HEADER_1_BYTES] + data


def test_record_of_the_version_before_has_zeros_for_what_it_lacks() -> None:
    view = ffi.new("struct event_header *")
    view.kind, view.reason, view.source_identity = lib.EVENT_DROP, lib.DROP_NO_BACKEND, 300
    view.source_endpoint = 7  # behind its header: not written
    (event,) = Decoder().decode([memoryview(header_1(view, b"abc"))])
    assert (event.kind, event.reason, event.source_identity) == (1, lib.DROP_NO_BACKEND, 300)
    assert (event.source_endpoint, event.flow_state) == (0, 0)
    assert event.data == b"abc"


def test_fields_of_a_longer_header_are_skipped() -> None:
    view = ffi.new("struct event_header *")
    view.version, view.header_size, view.captured_length = 2, events.HEADER.size + 8, 3
    view.destination_endpoint = 9
    raw = bytes(ffi.buffer(view)) + bytes(range(8)) + b"abc"
    (event,) = Decoder().decode([memoryview(raw)])
    assert (event.destination_endpoint, event.data) == (9, b"abc")


def test_enumerations_are_those_of_c() -> None:
    ours = {
        "EVENT_VERSION": events.VERSION,
        **{f"EVENT_{m.name}": m.value for m in EventKind},
        **{f"DIRECTION_{m.name}": m.value for m in events.Direction},
        **{f"LAYER_{m.name}": m.value for m in Layer},
        **{f"EVENT_FLAG_{m.name}": m.value for m in events.EventFlag},
        **{f"MONITOR_{m.name}": m.value for m in events.MonitorLevel},
    }
    prefixes = ("EVENT_", "DIRECTION_", "LAYER_", "MONITOR_")
    limits = {"EVENT_CAPTURE_BYTES", "EVENT_KINDS", "EVENT_HEADER_1_BYTES"}
    theirs = {
        name: getattr(lib, name)
        for name in dir(lib)
        if name.startswith(prefixes) and name not in limits
    }
    assert ours == theirs
    assert max(EventKind) < lib.EVENT_KINDS


def test_names_are_those_of_the_field() -> None:
    """As the clients of flows know them."""
    assert events.TRACE_POINTS[lib.TRACE_TO_ENDPOINT] == "to-endpoint"
    assert events.TRACE_POINTS[lib.TRACE_FROM_NETWORK] == "from-network"
    assert (lib.TRACE_TO_ENDPOINT, lib.TRACE_TO_STACK, lib.TRACE_TO_NETWORK) == (101, 3, 11)
    states = ["unknown", "new", "established", "reply", "related"]
    assert dict(enumerate(states)) == events.FLOW_STATES


def test_metrics_are_the_c_structs() -> None:
    assert events.METRICS_KEY.size == ffi.sizeof("struct metrics_key")
    assert events.METRICS_VALUE.size == ffi.sizeof("struct metrics_value")


def test_reasons_are_dense_and_those_of_c() -> None:
    known = reasons.reasons()
    assert sorted(known) == list(range(-len(known) + 1, 1))
    for number, reason in known.items():
        assert number == 0 or getattr(lib, f"DROP_{reason.name}") == number
    assert sum(name.startswith("DROP_") for name in dir(lib)) == len(known) - 1
    flow_numbers = [reason.flow_number for number, reason in known.items() if number]
    assert set(flow_numbers) <= set(range(130, 208)) - {159, 206}  # those that flow.proto has
    assert set(flow_numbers) <= reasons.FLOW_TEXTS.keys()
    assert reasons.reason_label(-2) == "no backend"
    assert reasons.reason_label(-9999) == "-9999"


def test_explanations_come_from_the_header() -> None:
    assert str(reasons.reasons()[-1]) == "invalid packet"
    no_service = reasons.reasons()[lib.DROP_NO_SERVICE]
    assert str(no_service).startswith("no service: ")
    assert no_service.flow_number == 158


def test_file_names_are_those_of_the_sources() -> None:
    numbers = [getattr(lib, name) for name in dir(lib) if name.startswith("FILE_")]
    names = {reasons.file_label(number) for number in numbers} - {"unknown", "test.bpf.c"}
    sources = {path.name: path.read_text() for path in LIB.parent.rglob("*.[hc]")}
    refusing = {name for name, text in sources.items() if "return REFUSE(" in text}
    assert refusing - {"drop.h"} <= names <= sources.keys()
    assert {"lb.h", "sock.bpf.c"} <= names


def test_records_that_cannot_be_read_are_counted_not_guessed() -> None:
    decoder = Decoder()
    raw = bytearray(events.HEADER.size)
    view = ffi.from_buffer("struct event_header *", raw)
    view.version, view.header_size = lib.EVENT_VERSION + 1, len(raw)
    assert list(decoder.decode([memoryview(bytes(raw))])) == []
    view.version, view.captured_length = lib.EVENT_VERSION, 1
    assert list(decoder.decode([memoryview(bytes(raw)), memoryview(b"short")])) == []
    assert (decoder.other_version, decoder.malformed) == (1, 2)


@pytest.fixture
def reporting() -> Iterator[Object]:
    with Object.open("test", build(SOURCE)) as obj:
        obj.set_max_entries("cilia_events", 1 << 16)
        obj.load()
        listen(obj, EventKind.DROP)
        yield obj


def listen(obj: Object, *kinds: EventKind) -> None:
    with obj.map(listeners.NAME) as raw:
        listeners.Listeners(raw).kinds = frozenset(kinds)


@pytest.mark.root
def test_drop_says_why_where_and_what(reporting: Object) -> None:
    earliest = time.monotonic_ns()
    reporting.program("refuse").run(PACKET)
    with Reader.ring(reporting.map("cilia_events")) as reader:
        batch = reader.read()
        assert batch.size == 1
        (event,) = Decoder().decode(batch.records())
        assert reader.read().size == 0
    assert (event.kind, event.reason) == (EventKind.DROP, lib.DROP_NO_BACKEND)
    assert (event.file, event.direction) == (lib.FILE_TEST_BPF_C, events.Direction.EGRESS)
    assert event.line == DROP_LINE
    assert (event.original_length, event.data) == (200, PACKET[:128])
    assert event.layer == Layer.ETHERNET
    assert earliest < event.time_ns < time.monotonic_ns()
    assert event.cpu < (os.cpu_count() or 1)


@pytest.mark.root
def test_nothing_is_written_while_nobody_listens(reporting: Object) -> None:
    program = reporting.program("refuse")
    metrics = PerCpuMap(reporting.map("cilia_metrics").detach_fd())
    with Reader.ring(reporting.map("cilia_events")) as reader:
        for kinds, size in (((), 0), ((EventKind.TRACE,), 0), ((EventKind.DROP,), 1)):
            listen(reporting, *kinds)
            program.run(PACKET)
            assert reader.read().size == size
    assert events.lost_events(PerCpuMap(reporting.map("cilia_lost").detach_fd())) == {}
    (metric,) = events.read_metrics(metrics)
    assert metric.packets == 3


@pytest.mark.root
def test_short_packet_is_captured_whole(reporting: Object) -> None:
    reporting.program("refuse").run(PACKET[:40])
    with Reader.ring(reporting.map("cilia_events")) as reader:
        (event,) = Decoder().decode(reader.read().records())
    assert (event.original_length, event.data) == (40, PACKET[:40])


@pytest.mark.root
def test_written_and_lost_add_up_to_what_was_reported(reporting: Object) -> None:
    program = reporting.program("refuse")
    for cpu in sorted(os.sched_getaffinity(0)):
        with pinned_to(cpu):
            program.run(PACKET, repeat=1000)
    reported = 1000 * len(os.sched_getaffinity(0))
    with Reader.ring(reporting.map("cilia_events")) as reader:
        written = read_all(reader)
    lost = events.lost_events(PerCpuMap(reporting.map("cilia_lost").detach_fd()))
    assert lost == {EventKind.DROP: reported - written}
    assert 0 < written < reported


class pinned_to:  # noqa: N801  (reads as a word)
    """Run on one CPU."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu

    def __enter__(self) -> None:
        self.before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.cpu})

    def __exit__(self, *args: object) -> None:
        os.sched_setaffinity(0, self.before)


def read_all(reader: Reader) -> int:
    total = 0
    while True:
        batch = reader.read()
        if not batch.size:
            return total
        assert len(batch.raw) < BATCH_BYTES + 4096
        total += sum(1 for _ in Decoder().decode(batch.records()))


@pytest.mark.root
def test_drops_are_counted_by_reason_and_place(reporting: Object) -> None:
    for cpu in sorted(os.sched_getaffinity(0)):
        with pinned_to(cpu):
            reporting.program("refuse").run(PACKET, repeat=50)
    metrics = PerCpuMap(reporting.map("cilia_metrics").detach_fd())
    (metric,) = events.read_metrics(metrics)
    count = 50 * len(os.sched_getaffinity(0))
    assert (metric.packets, metric.bytes) == (count, count * len(PACKET))
    assert (metric.reason, metric.direction) == (-2, events.Direction.EGRESS)
    assert (metric.file, metric.line) == (lib.FILE_TEST_BPF_C, DROP_LINE)


@pytest.mark.root
async def test_batches_wake_their_reader_and_no_thread(reporting: Object) -> None:
    program = reporting.program("refuse")
    seen = 0
    with Reader.ring(reporting.map("cilia_events")) as reader:

        async def report() -> None:
            for _ in range(20):
                await anyio.sleep(0.001)
                program.run(PACKET)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(report)
            with anyio.fail_after(5):
                async for batch in reader.batches():
                    seen += batch.size
                    if seen == 20:
                        break


@pytest.mark.root
def test_perf_buffer_delivers_and_counts_what_it_lost() -> None:
    source = """
    struct { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); __uint(key_size, 4);
             __uint(value_size, 4); } samples SEC(".maps");
    SEC("tc") int send(struct __sk_buff *ctx)
    {
        char text[64] = "sample";
        bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, text, sizeof(text));
        return 0;
    }
    """
    with Object.open("test", build(source)) as obj:
        obj.load()
        with Reader.perf(obj.map("samples"), pages_per_cpu=1) as reader:
            obj.program("send").run(PACKET)
            records = list(reader.read().records())
            assert [bytes(record[:6]) for record in records] == [b"sample"]
            with pinned_to(min(os.sched_getaffinity(0))):
                obj.program("send").run(PACKET, repeat=1000)
                kept = reader.read().size
                # The kernel reports a loss with the next sample that has room.
                obj.program("send").run(PACKET)
                kept += reader.read().size
            assert kept + reader.lost == 1001
            assert reader.lost > 0


@pytest.mark.root
def test_reader_leaves_no_descriptor(reporting: Object) -> None:
    gc.collect()
    before = open_descriptors()
    ring = reporting.map("cilia_events")
    with Reader.ring(ring) as reader:
        reader.read()
    ring.close()
    with pytest.raises(ValueError, match="closed"):
        Reader.ring(ring)
    with Map.create(MapType.HASH, "test", 4, 4, 4) as wrong, pytest.raises(Exception, match="open"):
        Reader.ring(wrong)
    assert open_descriptors() == before

# SPDX-License-Identifier: Apache-2.0
"""The datapath's reports in Python: the headers of events, drops and metrics in ``bpf/lib``.

``Decoder`` turns records into ``Event`` objects; what it does not understand (another version, cut
short) it counts instead of guessing. ``lost_events`` and ``read_metrics`` add up the counters of
all CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import msgspec

from bpf.layout import header

if TYPE_CHECKING:
    from bpf.maps.percpu import PerCpuMap

_HEADER: Final = header("event_types.h")
_EVENT: Final = _HEADER.numbers("EVENT_")
_DIRECTION: Final = _HEADER.numbers("DIRECTION_")
_LAYER: Final = _HEADER.numbers("LAYER_")

VERSION: Final = _EVENT["VERSION"]


class EventKind(IntEnum):
    DROP = _EVENT["DROP"]
    TRACE = _EVENT["TRACE"]
    VERDICT = _EVENT["VERDICT"]
    SOCKET = _EVENT["SOCKET"]


class Direction(IntEnum):
    UNKNOWN = _DIRECTION["UNKNOWN"]
    INGRESS = _DIRECTION["INGRESS"]
    EGRESS = _DIRECTION["EGRESS"]


class Layer(IntEnum):
    """The protocol that the captured data begins with."""

    NONE = _LAYER["NONE"]
    ETHERNET = _LAYER["ETHERNET"]
    IP = _LAYER["IP"]


class Event(msgspec.Struct, frozen=True):
    """One record. Enumerations stay numbers here: a newer datapath may send one without a name.

    ``bpf.reasons`` has the names of reasons and files.
    """

    kind: int
    cpu: int
    time_ns: int
    socket_cookie: int
    netns_cookie: int
    pid: int
    ifindex: int
    source_identity: int
    destination_identity: int
    rule_cookie: int
    reason: int
    line: int
    file: int
    direction: int
    layer: int
    original_length: int
    #: The first bytes of the packet, as ``layer`` says.
    data: bytes


HEADER: Final = _HEADER.struct("event_header")


class Decoder:
    """Decodes records and counts those that it cannot read."""

    def __init__(self) -> None:
        #: Records of another version of the header.
        self.other_version = 0
        #: Records shorter than they say.
        self.malformed = 0

    def decode(self, records: Iterable[memoryview]) -> Iterator[Event]:
        """The events in ``records``, in order."""
        for record in records:
            event = self._decode(record)
            if event is not None:
                yield event

    def _decode(self, record: memoryview) -> Event | None:
        if len(record) < HEADER.size:
            self.malformed += 1
            return None
        version, kind, header_size, *fields, _flags, captured, original = HEADER.unpack_from(record)
        if version != VERSION:
            self.other_version += 1
            return None
        if header_size < HEADER.size or header_size + captured > len(record):
            self.malformed += 1
            return None
        # The fields of Event are in the order of the header.
        data = bytes(record[header_size : header_size + captured])
        return Event(*[kind, *fields, original, data])


def lost_events(lost: PerCpuMap) -> dict[int, int]:
    """Events that found the ring buffer full, by kind; kinds that lost none are left out."""
    counts = {
        int.from_bytes(key, "little"): sum(int.from_bytes(value, "little") for value in values)
        for key, values in lost.items_each()
    }
    return {kind: count for kind, count in counts.items() if count}


_METRICS: Final = header("metrics_types.h")
METRICS_KEY: Final = _METRICS.struct("metrics_key")
METRICS_VALUE: Final = _METRICS.struct("metrics_value")


class Metric(msgspec.Struct, frozen=True):
    """Packets and bytes of one reason at one place in the source; reason 0 = forwarded."""

    reason: int
    direction: int
    file: int
    line: int
    packets: int
    bytes: int


def read_metrics(metrics: PerCpuMap) -> Iterator[Metric]:
    """Every counter, added up over the CPUs."""
    for key, values in metrics.items_each():
        reason, line, file, direction = METRICS_KEY.unpack(key)
        parts = [METRICS_VALUE.unpack(value) for value in values]
        packets, size = (sum(column) for column in zip(*parts, strict=True))
        yield Metric(reason, direction, file, line, packets, size)

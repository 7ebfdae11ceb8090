# SPDX-License-Identifier: Apache-2.0
"""The datapath's reports in Python: the headers of events, drops and metrics in ``bpf/lib``.

``Decoder`` turns records into ``Event`` objects; what it does not understand (a later version, cut
short) it counts instead of guessing. Records of the version before have 0 in the fields that it did
not have: its programs write into the same ring buffer during an upgrade. ``lost_events`` and
``read_metrics`` add up the counters of all CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Final

import msgspec

from bpf.layout import header

if TYPE_CHECKING:
    from bpf.maps.percpu import PerCpuMap

_HEADER: Final = header("event_types.h")
_EVENT: Final = _HEADER.numbers("EVENT_")
_DIRECTION: Final = _HEADER.numbers("DIRECTION_")
_LAYER: Final = _HEADER.numbers("LAYER_")
_MONITOR: Final = _HEADER.numbers("MONITOR_")

VERSION: Final = _EVENT["VERSION"]
#: Header of version 1: the first fields of today's.
HEADER_1_BYTES: Final = _EVENT["HEADER_1_BYTES"]
CAPTURE_BYTES: Final = _EVENT["CAPTURE_BYTES"]

#: Added to a direction by programs alone; records never have it.
AT_SENDER: Final = _HEADER.defines["AT_SENDER"]

#: Names by number: where a packet was seen, and the state of its flow.
TRACE_POINTS: Final = _HEADER.texts("TRACE_")
FLOW_STATES: Final = _HEADER.texts("FLOW_")


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


class EventFlag(IntFlag):
    """``EVENT_FLAG_*``."""

    #: To who opened the flow; valid if `flow_state` is known.
    REPLY = _EVENT["FLAG_REPLY"]
    ENCRYPTED = _EVENT["FLAG_ENCRYPTED"]
    #: `original_source` is an IPv6 address.
    V6 = _EVENT["FLAG_V6"]


class MonitorLevel(IntEnum):
    """``MONITOR_*``: which packets that pass are left out, from none to most."""

    NONE = _MONITOR["NONE"]
    LOWEST = _MONITOR["LOWEST"]
    LOW = _MONITOR["LOW"]
    MEDIUM = _MONITOR["MEDIUM"]
    MAXIMUM = _MONITOR["MAXIMUM"]


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
    #: `EventFlag`.
    flags: int
    original_length: int
    trace_id: int
    flow_hash: int
    mark: int
    policy_generation: int
    tunnel_vni: int
    extension: int
    #: Of this node; 0: none, or unknown.
    source_endpoint: int
    destination_endpoint: int
    #: In `TRACE_POINTS`; 0: the record is no trace.
    observation_point: int
    #: In `FLOW_STATES`.
    flow_state: int
    tunnel_protocol: int
    #: 16 bytes, an IPv4 address first; zeros: the source was not translated.
    original_source: bytes
    #: The first bytes of the packet, as ``layer`` says.
    data: bytes


HEADER: Final = _HEADER.struct("event_header")
_OF_RECORD: Final = ("version", "header_size", "captured_length")
#: The fields of `Event`, in its order.
_FIELDS: Final = _HEADER.struct("event_header", skipped=_OF_RECORD)
_PLACES: Final = _HEADER.places("event_header")
_VERSION_AT, _KIND_AT, _SIZE_AT, _CAPTURED_AT = (
    _PLACES[name].start for name in ("version", "kind", "header_size", "captured_length")
)
_U16: Final = Struct("=H")


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
        if len(record) < HEADER_1_BYTES:
            self.malformed += 1
            return None
        if not 1 <= record[_VERSION_AT] <= VERSION:
            self.other_version += 1
            return None
        (size,) = _U16.unpack_from(record, _SIZE_AT)
        end = size + _U16.unpack_from(record, _CAPTURED_AT)[0]
        if size < HEADER_1_BYTES or end > len(record):
            self.malformed += 1
            return None
        known: bytes | memoryview = record
        if size < HEADER.size:
            known = bytes(record[:size]).ljust(HEADER.size, b"\0")
        return Event(*[*_FIELDS.unpack_from(known), bytes(record[size:end])])


def kind_of(record: memoryview) -> int:
    """`EventKind` of a record, which is not decoded; 0 if it is cut short."""
    return record[_KIND_AT] if len(record) > _KIND_AT else 0


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

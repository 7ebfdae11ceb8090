# SPDX-License-Identifier: Apache-2.0
"""Events of the datapath, wired: one reader of the ring buffer, for those who ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpf import events
from bpf.events import EventKind
from cilia.datapath.packets import FlowMaps
from cilia.datapath.wiring import DatapathPart
from cilia.flows.reader import EventReader
from cilia.program.parts import Part

if TYPE_CHECKING:
    from bpf.ringbuf import Reader

__all__ = ["FlowsPart", "build"]


@dataclass(kw_only=True)
class FlowsPart(Part):
    reader: EventReader


def build(datapath: DatapathPart) -> FlowsPart | None:
    """Return the part that reads events, None where no program reports any."""
    flows = datapath.edge.flows
    if flows is None:
        return None
    reader = EventReader(_KernelEvents(flows))
    return FlowsPart(reader=reader, jobs={"read-events": reader.run})


class _KernelEvents:
    """The maps that the programs report into."""

    def __init__(self, flows: FlowMaps) -> None:
        self._flows = flows

    def open(self) -> Reader:
        from bpf.ringbuf import Reader

        return Reader.ring(self._flows.event_ring)

    def want(self, kinds: frozenset[EventKind]) -> None:
        self._flows.listeners.kinds = kinds

    def lost(self) -> Mapping[int, int]:
        return events.lost_events(self._flows.lost)

# SPDX-License-Identifier: Apache-2.0
"""A listener's queue is bounded, and what it had no room for is told where it is missing."""

from __future__ import annotations

import anyio
import pytest

from bpf.events import Decoder, EventKind
from bpf.records import records
from cilia.flows.listener import Listener
from cilia.flows.wire import Frame, FrameKind, encode, frames
from tests.cilia.flows.made import FORGED, batch, event

DROP, TRACE = EventKind.DROP, EventKind.TRACE
ONE = batch(event(**FORGED))


async def taken(listener: Listener) -> list[Frame]:
    """All that waits."""
    found = []
    with anyio.move_on_after(0.05):
        while True:
            found.append(await listener.next())
    return list(frames(found))


def told(found: list[Frame]) -> list[object]:
    """Numbers of records, and notices."""
    return [
        sum(1 for _ in records(frame.payload))
        if frame.kind == FrameKind.RECORDS
        else frame.notice()
        for frame in found
    ]


async def test_records_come_as_they_were_written() -> None:
    listener = Listener({DROP})
    listener.records(batch(event(**FORGED), event(**{**FORGED, "line": 53})))
    _, frame = await taken(listener)
    decoded = list(Decoder().decode(records(frame.payload)))
    assert decoded == [event(**FORGED), event(**{**FORGED, "line": 53})]
    assert listener.bytes_waiting == 0


async def test_slow_listener_is_told_what_it_missed_where_it_is_missing() -> None:
    listener = Listener({DROP}, queue_bytes=3 * len(ONE.raw))
    for _ in range(5):
        listener.records(ONE)
    assert listener.bytes_waiting < 4 * len(ONE.raw)
    found = told(await taken(listener))
    assert found == [{"listening": True}, 1, 1, {"lost": 3, "at": "reader"}]
    listener.records(ONE)
    assert told(await taken(listener)) == [1]


async def test_loss_stands_before_what_came_later() -> None:
    listener = Listener({DROP}, queue_bytes=2 * len(ONE.raw) + 100)
    for _ in range(4):
        listener.records(ONE)
    await listener.next()
    await listener.next()
    listener.records(ONE)
    assert told(await taken(listener)) == [1, {"lost": 2, "at": "reader"}, 1]


async def test_losses_of_the_ring_concern_who_wants_the_kind() -> None:
    listener = Listener({DROP})
    listener.lost(TRACE, 5)
    listener.lost(DROP, 3)
    found = told(await taken(listener))
    assert found == [{"listening": True}, {"lost": 3, "at": "ring", "kind": 1}]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_frames_come_in_pieces_of_any_size(size: int) -> None:
    raw = encode(FrameKind.RECORDS, b"abc") + encode(FrameKind.NOTICE, b"{}") + ONE.raw[:3]
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    assert list(frames(pieces)) == [Frame(1, b"abc"), Frame(2, b"{}")]

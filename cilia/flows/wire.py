# SPDX-License-Identifier: Apache-2.0
"""How events go from the agent to who listens: frames on one answer without end.

::

    frame     length (u32), kind (u32), that many bytes; in host order, for both are on one machine
    RECORDS   records as the ring buffer had them (`bpf.ringbuf.Batch`): whoever reads decodes them
    NOTICE    a JSON object: {"listening": true} first, {"lost": N, "at": "ring", "kind": K},
              {"lost": N, "at": "reader"}
    an empty RECORDS frame says that the agent is there
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Any, Final, NamedTuple

__all__ = ["ALIVE", "PATH", "Frame", "FrameKind", "encode", "frames", "notice"]

#: Of the agent's socket.
PATH: Final = "/events"

_HEAD: Final = Struct("=II")


class FrameKind(IntEnum):
    RECORDS = 1
    NOTICE = 2


class Frame(NamedTuple):
    kind: int
    payload: bytes

    def notice(self) -> dict[str, Any]:
        return dict(json.loads(self.payload))


def encode(kind: FrameKind, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), kind) + payload


#: Sent while there is nothing to tell.
ALIVE: Final = encode(FrameKind.RECORDS, b"")


def notice(**told: object) -> bytes:
    return encode(FrameKind.NOTICE, json.dumps(told).encode())


def frames(pieces: Iterable[bytes]) -> Iterator[Frame]:
    """Return the frames in an answer that comes in pieces; one that is cut off is left out."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        at = 0
        while len(rest) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(rest, at)
            end = at + _HEAD.size + length
            if len(rest) < end:
                break
            yield Frame(kind, bytes(rest[at + _HEAD.size : end]))
            at = end
        del rest[:at]

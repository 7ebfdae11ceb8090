# SPDX-License-Identifier: Apache-2.0
"""The maps of source translation: codecs of ``bpf/lib/nat_types.h``.

A flow has two entries that name each other; ``partner`` computes the key of the other one. Keys
have the layout of connection tracking, with another meaning of ``direction``.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Final

import msgspec

from bpf.layout import header
from bpf.maps.ct import CtKey as NatKey
from bpf.maps.ct import decode_key, encode_key
from bpf.maps.raw import RawMap

__all__ = [
    "CREATED",
    "EXPIRES",
    "NAT_MAPS",
    "REV_NAT",
    "SIGNAL",
    "SWEPT",
    "VALUE_SIZE",
    "NatDirection",
    "NatFlag",
    "NatKey",
    "NatValue",
    "Pressure",
    "decode_key",
    "decode_pressure",
    "decode_value",
    "encode_key",
    "encode_value",
    "partner",
    "translations",
]

#: Names of the maps, by family.
NAT_MAPS: Final = ("cilia_snat4", "cilia_snat6")

_HEADER: Final = header("nat_types.h")
_NAT: Final = _HEADER.numbers("NAT_")
_VALUE4: Final = _HEADER.struct("nat4_value")
_VALUE6: Final = _HEADER.struct("nat6_value")
_PLACES: Final = {
    _VALUE4.size: _HEADER.places("nat4_value"),
    _VALUE6.size: _HEADER.places("nat6_value"),
}

#: Size of the values, by map.
VALUE_SIZE: Final = dict(zip(NAT_MAPS, _PLACES, strict=True))

#: Where these fields stand in a value, by its size.
EXPIRES: Final = {size: places["expires_s"] for size, places in _PLACES.items()}
CREATED: Final = {size: places["created_s"] for size, places in _PLACES.items()}
REV_NAT: Final = {size: places["rev_nat"] for size, places in _PLACES.items()}


class NatDirection(IntEnum):
    """``NAT_*``: out as the packet came, in as its reply comes."""

    OUT = _NAT["OUT"]
    IN = _NAT["IN"]


class NatFlag(IntFlag):
    NONE = 0
    CLOSING = _NAT["CLOSING"]
    DSR = _NAT["DSR"]
    SEEN_REPLY = _NAT["SEEN_REPLY"]
    ORIGIN_FIN = _NAT["ORIGIN_FIN"]
    REPLY_FIN = _NAT["REPLY_FIN"]
    CONFIRMED = _NAT["CONFIRMED"]
    ENDED = _NAT["ENDED"]


class NatValue(msgspec.Struct, frozen=True):
    """Value, 40 or 52 bytes: the source or destination that a packet gets."""

    address: bytes
    port: int
    flags: int = 0
    expires_s: int = 0
    created_s: int = 0
    rev_nat: int = 0
    #: Address and port that the client asked; port 0: an earlier version wrote the entry.
    frontend: bytes = b""
    frontend_port: int = 0

    @property
    def asked(self) -> tuple[bytes, int] | None:
        """Address and port of the frontend; None if the entry does not tell."""
        return (self.frontend, self.frontend_port) if self.frontend_port else None


_PRESSURE: Final = _HEADER.struct("nat_pressure")

#: Name of the array whose one element is the time of the last collection (u32, seconds).
SWEPT: Final = "cilia_nat_swept"

#: Name of the ring buffer that has the next records.
SIGNAL: Final = "cilia_signal"


class Pressure(msgspec.Struct, frozen=True):
    """``nat_pressure``: a destination for which free source ports are rare."""

    address: bytes
    port: int
    proto: int
    #: No port was found.
    refused: bool


def decode_pressure(raw: memoryview | bytes) -> Pressure:
    address, port, proto, family, refused = _PRESSURE.unpack(raw)
    size = 16 if family == 6 else 4
    return Pressure(address[:size], int.from_bytes(port, "big"), proto, bool(refused))


def encode_value(value: NatValue) -> bytes:
    layout = _VALUE4 if len(value.address) == 4 else _VALUE6
    address, port, *between, frontend_port = msgspec.structs.astuple(value)
    return layout.pack(address, port.to_bytes(2, "big"), *between, frontend_port.to_bytes(2, "big"))


def decode_value(raw: bytes) -> NatValue:
    layout = _VALUE4 if len(raw) == _VALUE4.size else _VALUE6
    fields = list(layout.unpack(raw))
    for port in (1, -1):
        fields[port] = int.from_bytes(fields[port], "big")
    return NatValue(*fields)


def partner(key: NatKey, value: NatValue) -> NatKey:
    """The key of a flow's other entry: its replies' for NAT_OUT, the original tuple for NAT_IN."""
    if key.direction == NatDirection.OUT:
        return NatKey(
            destination=value.address,
            source=key.destination,
            destination_port=value.port,
            source_port=key.destination_port,
            proto=key.proto,
            direction=NatDirection.IN,
        )
    return NatKey(
        destination=key.source,
        source=value.address,
        destination_port=key.source_port,
        source_port=value.port,
        proto=key.proto,
        direction=NatDirection.OUT,
    )


def translations(raw: RawMap) -> Iterator[tuple[NatKey, NatValue]]:
    """All entries of one of the maps, decoded."""
    for key, value in raw.items():
        yield decode_key(key), decode_value(value)

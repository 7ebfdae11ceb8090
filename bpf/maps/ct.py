# SPDX-License-Identifier: Apache-2.0
"""The maps of connection tracking: codecs of ``bpf/lib/ct_types.h`` and the set of maps.

Addresses are 4 or 16 packed bytes. Times are seconds of the monotonic clock, which programs and
this process share.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Final

import msgspec

from bpf.layout import header
from bpf.maps.raw import RawMap
from bpf.maps.text import endpoint_text

#: Names of the maps, by family and kind.
CT_MAPS: Final = ("cilia_ct4_tcp", "cilia_ct4_any", "cilia_ct6_tcp", "cilia_ct6_any")

_HEADER: Final = header("ct_types.h")
_CT: Final = _HEADER.numbers("CT_")
_KEY4: Final = _HEADER.struct("ct4_key")
_KEY6: Final = _HEADER.struct("ct6_key")
_ENTRY: Final = _HEADER.struct("ct_entry")
_PLACES: Final = _HEADER.places("ct_entry")

#: Bit of ``policy_generation``: the verdict is no.
VERDICT_DENIED: Final = _HEADER.numbers("VERDICT_")["DENIED"]

#: Size of the values.
ENTRY_SIZE: Final = _ENTRY.size

#: Where ``expires_s`` stands in a value: what a sweep reads of an entry it leaves alone.
EXPIRES: Final = _PLACES["expires_s"]

#: Where these two stand in a value.
BACKEND_ID: Final = _PLACES["backend_id"]
REV_NAT: Final = _PLACES["rev_nat"]


class Direction(IntEnum):
    """``CT_*``: which of a connection's entries it is."""

    EGRESS = _CT["EGRESS"]
    INGRESS = _CT["INGRESS"]
    SERVICE = _CT["SERVICE"]


class CtFlag(IntFlag):
    """The value of an entry: all that is known of a connection."""

    NONE = 0
    SEEN_REPLY = _CT["SEEN_REPLY"]
    ORIGIN_CLOSING = _CT["ORIGIN_CLOSING"]
    REPLY_CLOSING = _CT["REPLY_CLOSING"]
    NODE_PORT = _CT["NODE_PORT"]
    HAIRPIN = _CT["HAIRPIN"]
    DSR = _CT["DSR"]
    PROXY_REDIRECT = _CT["PROXY_REDIRECT"]
    FROM_TUNNEL = _CT["FROM_TUNNEL"]
    SNAT = _CT["SNAT"]
    NON_SYN = _CT["NON_SYN"]
    OTHER_PORT = _CT["OTHER_PORT"]
    OTHER_NODE = _CT["OTHER_NODE"]
    LOCAL = _CT["LOCAL"]


CLOSING: Final = CtFlag.ORIGIN_CLOSING | CtFlag.REPLY_CLOSING


class CtKey(msgspec.Struct, frozen=True):
    """Key of the IPv4 (16 bytes) and IPv6 (40 bytes) maps: a tuple as its first packet had it."""

    destination: bytes
    source: bytes
    destination_port: int
    source_port: int
    proto: int
    direction: int

    @property
    def source_text(self) -> str:
        return endpoint_text(self.source, self.source_port)

    @property
    def destination_text(self) -> str:
        return endpoint_text(self.destination, self.destination_port)

    def __str__(self) -> str:
        return f"{self.source_text} -> {self.destination_text}"


#: ``bytes`` where a field has that name.
Packed = bytes
_NO_ADDRESS: Final = bytes(16)


class CtEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Value of all four maps, 88 bytes."""

    packets: int = 0
    bytes: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0
    expires_s: int = 0
    created_s: int = 0
    backend_id: int = 0
    rev_nat: int = 0
    remote_identity: int = 0
    policy_generation: int = 0
    rule_cookie: int = 0
    ifindex: int = 0
    frontend_port: int = 0
    flags: int = 0
    tcp_flags: int = 0
    reply_tcp_flags: int = 0
    nat_port: int = 0
    #: An IPv4 address is the first 4 of 16 bytes.
    nat_address: Packed = _NO_ADDRESS

    @property
    def generation(self) -> int:
        """Generation of the policy that judged it, 0 if none did."""
        return self.policy_generation & ~VERDICT_DENIED

    @property
    def verdict(self) -> str:
        """Verdict of policy; empty if it was not judged."""
        if not self.generation:
            return ""
        return "denied" if self.policy_generation & VERDICT_DENIED else "allowed"

    def frontend(self, key: CtKey) -> tuple[Packed, int] | None:
        """Address and port that the client of an entry asked; None if the entry does not tell."""
        if not self.rev_nat:
            return None
        if key.direction == Direction.SERVICE:
            return key.destination, key.destination_port
        if not self.frontend_port:
            return None
        return self.nat_address[: len(key.source)], self.frontend_port

    def translated_source(self, key: CtKey) -> tuple[Packed, int] | None:
        """Address and port that the client of an entry gets; None if it keeps its own."""
        if not self.flags & CtFlag.SNAT:
            return None
        return self.nat_address[: len(key.source)], self.nat_port


#: As in ``tcp_flags``.
TCP_FIN, TCP_RST = 0x01, 0x04


def is_over(entry: CtEntry, now_s: int) -> bool:
    """`ct_over` of bpf/lib/ct.h: nobody spoke for too long, a reset, or both sides are done."""
    either = entry.tcp_flags | entry.reply_tcp_flags
    both = entry.tcp_flags & entry.reply_tcp_flags
    return entry.expires_s < now_s or bool(either & TCP_RST or both & TCP_FIN)


#: Fields in network order, by their place.
_PORTS: Final = tuple(map(CtEntry.__struct_fields__.index, ("frontend_port", "nat_port")))


def encode_key(key: CtKey) -> bytes:
    layout = _KEY4 if len(key.destination) == 4 else _KEY6
    return layout.pack(
        key.destination,
        key.source,
        key.destination_port.to_bytes(2, "big"),
        key.source_port.to_bytes(2, "big"),
        key.proto,
        key.direction,
    )


def decode_key(raw: bytes) -> CtKey:
    layout = _KEY4 if len(raw) == _KEY4.size else _KEY6
    destination, source, dport, sport, proto, direction = layout.unpack(raw)
    return CtKey(
        destination,
        source,
        int.from_bytes(dport, "big"),
        int.from_bytes(sport, "big"),
        proto,
        direction,
    )


def ends(key: bytes) -> tuple[bytes, bytes]:
    """Addresses of an encoded key: destination and source, packed."""
    size = 4 if len(key) == _KEY4.size else 16
    return key[:size], key[size : 2 * size]


def encode_entry(entry: CtEntry) -> bytes:
    fields = list(msgspec.structs.astuple(entry))
    for place in _PORTS:
        fields[place] = fields[place].to_bytes(2, "big")
    return _ENTRY.pack(*fields)


def decode_entry(raw: bytes) -> CtEntry:
    fields = list(_ENTRY.unpack(raw))
    for place in _PORTS:
        fields[place] = int.from_bytes(fields[place], "big")
    return CtEntry(**dict(zip(CtEntry.__struct_fields__, fields, strict=True)))


def connections(raw: RawMap) -> Iterator[tuple[CtKey, CtEntry]]:
    """All entries of one of the maps, decoded."""
    for key, value in raw.items():
        yield decode_key(key), decode_entry(value)

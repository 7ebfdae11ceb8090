# SPDX-License-Identifier: Apache-2.0
"""The maps that spare a pod its own redirection: codecs of ``bpf/lib/lrp_types.h``, and the pair.

An entry says that sockets of one network namespace, when they dial one frontend, are not
translated.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from bpf.maps.fake import FakeMap
from bpf.maps.raw import RawMap

if TYPE_CHECKING:
    from bpf.maps.map import Map

IPV4_KEY: Final = Struct("=Q4s2sxx")
IPV6_KEY: Final = Struct("=Q16s2sxxxxxx")
VALUE: Final = bytes(4)
NAMES: Final = ("cilia_skip_lb4", "cilia_skip_lb6")
#: Pods of a node that are behind a redirection, times the frontends that it has.
ENTRIES: Final = 1 << 14


class SkipKey(NamedTuple):
    """``address``: 4 or 16 packed bytes."""

    netns_cookie: int
    address: bytes
    port: int


def encode_key(key: SkipKey) -> bytes:
    layout = IPV4_KEY if len(key.address) == 4 else IPV6_KEY
    return layout.pack(key.netns_cookie, key.address, key.port.to_bytes(2, "big"))


def decode_key(raw: bytes) -> SkipKey:
    cookie, address, port = (IPV4_KEY if len(raw) == IPV4_KEY.size else IPV6_KEY).unpack(raw)
    return SkipKey(cookie, address, int.from_bytes(port, "big"))


class SkipMaps(NamedTuple):
    """The map of each family."""

    v4: RawMap
    v6: RawMap

    def of(self, raw_key: bytes) -> RawMap:
        """The map that a key belongs to."""
        return self.v4 if len(raw_key) == IPV4_KEY.size else self.v6

    def wrap(self, wrapper: Callable[[RawMap], RawMap]) -> SkipMaps:
        return SkipMaps(wrapper(self.v4), wrapper(self.v6))

    def close(self) -> None:
        """Close those that are kernel maps."""
        for raw in self:
            getattr(raw, "close", lambda: None)()

    @classmethod
    def fake(cls, max_entries: int = ENTRIES) -> SkipMaps:
        """Maps in memory."""
        sizes = (IPV4_KEY.size, IPV6_KEY.size)
        made = [
            FakeMap(n, size, len(VALUE), max_entries) for n, size in zip(NAMES, sizes, strict=True)
        ]
        return cls(*made)

    @classmethod
    def create(cls, max_entries: int = ENTRIES) -> SkipMaps:
        """New kernel maps without pins. Raises: NoPrivilege, NoMemory."""
        from bpf.maps.map import Map
        from bpf.maps.types import MapFlag, MapType

        v4, v6 = (
            Map.create(MapType.HASH, name, size, len(VALUE), max_entries, flags=MapFlag.NO_PREALLOC)
            for name, size in zip(NAMES, (IPV4_KEY.size, IPV6_KEY.size), strict=True)
        )
        return cls(v4, v6)

    @classmethod
    def over(cls, maps: Mapping[str, Map]) -> SkipMaps:
        """Maps that are open already, by name, each under a second descriptor."""
        return cls(*(maps[name].duplicate() for name in NAMES))


def dump(maps: SkipMaps) -> str:
    """Every entry, a line each, sorted."""
    lines = sorted(_lines(maps))
    return "".join(f"{line}\n" for line in lines)


def line(raw_key: bytes) -> str:
    """
    >>> line(encode_key(SkipKey(7, bytes([10, 0, 0, 1]), 53)))
    'COOKIE=7 IP=10.0.0.1 PORT=53'
    """
    key = decode_key(raw_key)
    return f"COOKIE={key.netns_cookie} IP={ipaddress.ip_address(key.address)} PORT={key.port}"


def _lines(maps: SkipMaps) -> Iterator[str]:
    for raw in maps:
        for key, _ in raw.items():  # noqa: PERF102  a raw map is no dict
            yield line(key)

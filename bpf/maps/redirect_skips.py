# SPDX-License-Identifier: Apache-2.0
"""Codecs and set of the maps that spare a pod its redirection (``bpf/lib/redirect_skips_types.h``).

An entry says that sockets of one network namespace, when they dial one frontend, are not
translated; or packets of one pod's address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from bpf.layout import header
from bpf.maps.fake import FakeMap
from bpf.maps.raw import RawMap

if TYPE_CHECKING:
    from bpf.maps.map import Map

_HEADER: Final = header("redirect_skips_types.h")
IPV4_KEY: Final = _HEADER.struct("skip_lb4_key")
IPV6_KEY: Final = _HEADER.struct("skip_lb6_key")
POD4_KEY: Final = _HEADER.struct("skip_pod4_key")
POD6_KEY: Final = _HEADER.struct("skip_pod6_key")
VALUE: Final = bytes(_HEADER.struct("skip_lb_value").size)
NAMES: Final = ("cilia_skip_lb4", "cilia_skip_lb6", "cilia_skip_pod4", "cilia_skip_pod6")
_SIZES: Final = (IPV4_KEY.size, IPV6_KEY.size, POD4_KEY.size, POD6_KEY.size)
#: Pods of a node that are behind a redirection, times the frontends that it has.
ENTRIES: Final = 1 << 14


class SkipKey(NamedTuple):
    """``address``: 4 or 16 packed bytes."""

    netns_cookie: int
    address: bytes
    port: int


class PodSkipKey(NamedTuple):
    """``pod`` and ``address``: 4 or 16 packed bytes, of one family."""

    pod: bytes
    address: bytes
    port: int


def encode_key(key: SkipKey | PodSkipKey) -> bytes:
    port = key.port.to_bytes(2, "big")
    v4 = len(key.address) == 4
    if isinstance(key, PodSkipKey):
        return (POD4_KEY if v4 else POD6_KEY).pack(key.pod, key.address, port)
    return (IPV4_KEY if v4 else IPV6_KEY).pack(key.netns_cookie, key.address, port)


def decode_key(raw: bytes) -> SkipKey | PodSkipKey:
    """The maps' keys differ in size."""
    if len(raw) in (POD4_KEY.size, POD6_KEY.size):
        pod, address, port = (POD4_KEY if len(raw) == POD4_KEY.size else POD6_KEY).unpack(raw)
        return PodSkipKey(pod, address, int.from_bytes(port, "big"))
    cookie, address, port = (IPV4_KEY if len(raw) == IPV4_KEY.size else IPV6_KEY).unpack(raw)
    return SkipKey(cookie, address, int.from_bytes(port, "big"))


class SkipMaps(NamedTuple):
    """The maps of sockets and of packets, each by family."""

    v4: RawMap
    v6: RawMap
    pod4: RawMap
    pod6: RawMap

    def of(self, raw_key: bytes) -> RawMap:
        """The map that a key belongs to."""
        return self[_SIZES.index(len(raw_key))]

    def wrap(self, wrapper: Callable[[RawMap], RawMap]) -> SkipMaps:
        return SkipMaps(*map(wrapper, self))

    def close(self) -> None:
        """Close those that are kernel maps."""
        for raw in self:
            getattr(raw, "close", lambda: None)()

    @classmethod
    def fake(cls, max_entries: int = ENTRIES) -> SkipMaps:
        """Maps in memory."""
        return cls(
            *(
                FakeMap(name, size, len(VALUE), max_entries)
                for name, size in zip(NAMES, _SIZES, strict=True)
            )
        )

    @classmethod
    def create(cls, max_entries: int = ENTRIES) -> SkipMaps:
        """New kernel maps without pins. Raises: NoPrivilege, NoMemory."""
        from bpf.maps.map import Map
        from bpf.maps.types import MapFlag, MapType

        return cls(
            *(
                Map.create(
                    MapType.HASH, name, size, len(VALUE), max_entries, flags=MapFlag.NO_PREALLOC
                )
                for name, size in zip(NAMES, _SIZES, strict=True)
            )
        )

    @classmethod
    def over(cls, maps: Mapping[str, Map]) -> SkipMaps:
        """Maps that are open already, by name, each under a second descriptor."""
        return cls(*(maps[name].duplicate() for name in NAMES))


def dump(maps: SkipMaps) -> str:
    """Every entry of sockets, a line each, sorted."""
    lines = sorted(_lines(maps))
    return "".join(f"{line}\n" for line in lines)


def line(raw_key: bytes) -> str:
    """
    >>> line(encode_key(SkipKey(7, bytes([10, 0, 0, 1]), 53)))
    'COOKIE=7 IP=10.0.0.1 PORT=53'
    >>> line(encode_key(PodSkipKey(bytes([10, 0, 1, 7]), bytes([10, 0, 0, 1]), 53)))
    'POD=10.0.1.7 IP=10.0.0.1 PORT=53'
    """
    key = decode_key(raw_key)
    if isinstance(key, PodSkipKey):
        who = f"POD={ipaddress.ip_address(key.pod)}"
    else:
        who = f"COOKIE={key.netns_cookie}"
    return f"{who} IP={ipaddress.ip_address(key.address)} PORT={key.port}"


def _lines(maps: SkipMaps) -> Iterator[str]:
    for raw in (maps.v4, maps.v6):
        for key, _ in raw.items():  # noqa: PERF102  a raw map is no dict
            yield line(key)

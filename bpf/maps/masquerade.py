# SPDX-License-Identifier: Apache-2.0
"""The maps ``cilia_ipmasq4`` and ``cilia_ipmasq6``: codec of ``bpf/lib/masquerade_types.h``.

A prefix in one of them is where packets of this node's workloads go with their own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from bpf.layout import header
from bpf.maps.fake import FakeMap
from bpf.maps.raw import RawMap

if TYPE_CHECKING:
    from bpf.maps.map import Map

NAMES: Final = ("cilia_ipmasq4", "cilia_ipmasq6")

_HEADER: Final = header("masquerade_types.h")
_KEY4: Final = _HEADER.struct("masquerade4_key")
_KEY6: Final = _HEADER.struct("masquerade6_key")
VALUE: Final = bytes(_HEADER.struct("masquerade_exclusion").size)


def encode_key(address: bytes, length: int) -> bytes:
    """``address``: 4 or 16 packed bytes."""
    return (_KEY4 if len(address) == 4 else _KEY6).pack(length, address)


def decode_key(raw: bytes) -> tuple[bytes, int]:
    """Return the packed address and the length of a prefix."""
    length, address = (_KEY4 if len(raw) == _KEY4.size else _KEY6).unpack(raw)
    return address, length


class MasqueradeMaps(NamedTuple):
    """The map of each family."""

    v4: RawMap
    v6: RawMap

    def of(self, key: bytes) -> RawMap:
        """Return the map that a key belongs to."""
        return self.v4 if len(key) == _KEY4.size else self.v6

    def close(self) -> None:
        """Close those that are kernel maps."""
        for raw in self:
            getattr(raw, "close", lambda: None)()

    @classmethod
    def fake(cls, max_entries: int = 32768) -> MasqueradeMaps:
        """Maps in memory."""
        sizes = (_KEY4.size, _KEY6.size)
        return cls(
            *(
                FakeMap(name, size, len(VALUE), max_entries)
                for name, size in zip(NAMES, sizes, strict=True)
            )
        )

    @classmethod
    def over(cls, maps: Mapping[str, Map]) -> MasqueradeMaps:
        """Maps that are open already, by name, each under a second descriptor."""
        return cls(*(maps[name].duplicate() for name in NAMES))

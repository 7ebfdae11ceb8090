# SPDX-License-Identifier: Apache-2.0
"""The maps ``cilia_nodes4`` and ``cilia_nodes6``: codec of ``bpf/lib/cluster_nodes_types.h``.

Keys are packed addresses, 4 or 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntFlag
from typing import TYPE_CHECKING, Final, NamedTuple

from bpf.layout import header
from bpf.maps.fake import FakeMap
from bpf.maps.raw import RawMap

if TYPE_CHECKING:
    from bpf.maps.map import Map

NAMES: Final = ("cilia_nodes4", "cilia_nodes6")
#: Addresses of nodes, a family.
ENTRIES: Final = 1 << 14

_HEADER: Final = header("cluster_nodes_types.h")
_FLAG: Final = _HEADER.numbers("CLUSTER_NODE_")
_KEY_SIZES: Final = tuple(_HEADER.struct(f"cluster_node{n}_key").size for n in (4, 6))
_VALUE: Final = _HEADER.struct("cluster_node")
VALUE_BYTES: Final = _VALUE.size


class ClusterNodeFlag(IntFlag):
    """``CLUSTER_NODE_*``."""

    NONE = 0
    SELF = _FLAG["SELF"]


def encode_value(flags: ClusterNodeFlag) -> bytes:
    return _VALUE.pack(flags)


def decode_value(raw: bytes) -> ClusterNodeFlag:
    return ClusterNodeFlag(_VALUE.unpack(raw)[0])


class ClusterNodeMaps(NamedTuple):
    """The map of each family."""

    v4: RawMap
    v6: RawMap

    def of(self, address: bytes) -> RawMap:
        """The map that a packed address belongs to."""
        return self.v4 if len(address) == _KEY_SIZES[0] else self.v6

    def wrap(self, wrapper: Callable[[RawMap], RawMap]) -> ClusterNodeMaps:
        return ClusterNodeMaps(*map(wrapper, self))

    def close(self) -> None:
        """Close those that are kernel maps."""
        for raw in self:
            getattr(raw, "close", lambda: None)()

    @classmethod
    def fake(cls, max_entries: int = ENTRIES) -> ClusterNodeMaps:
        """Maps in memory."""
        return cls(
            *(
                FakeMap(name, size, VALUE_BYTES, max_entries)
                for name, size in zip(NAMES, _KEY_SIZES, strict=True)
            )
        )

    @classmethod
    def over(cls, maps: Mapping[str, Map]) -> ClusterNodeMaps:
        """Maps that are open already, by name, each under a second descriptor."""
        return cls(*(maps[name].duplicate() for name in NAMES))

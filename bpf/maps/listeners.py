# SPDX-License-Identifier: Apache-2.0
"""The map ``cilia_listeners``: which kinds of events somebody reads.

Programs write no other ones, and none at all while it is empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bpf.events import EventKind
from bpf.layout import header
from bpf.maps.raw import RawMap

__all__ = ["NAME", "Listeners"]

NAME: Final = "cilia_listeners"
_VALUE: Final = header("event_types.h").struct("event_listeners")
_KEY: Final = bytes(4)


class Listeners:
    """The one entry."""

    def __init__(self, raw: RawMap) -> None:
        self._raw = raw

    @property
    def kinds(self) -> frozenset[EventKind]:
        (bits,) = _VALUE.unpack(self._raw.lookup(_KEY) or bytes(_VALUE.size))
        return frozenset(kind for kind in EventKind if bits >> kind & 1)

    @kinds.setter
    def kinds(self, kinds: Iterable[EventKind]) -> None:
        self._raw.update(_KEY, _VALUE.pack(sum(1 << kind for kind in set(kinds))))

# SPDX-License-Identifier: Apache-2.0
"""Connections of packets by backend: what pods without socket programs and clients outside have."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from bpf.maps import ct
from cilia.datapath.conntrack import ConntrackMaps
from cilia.loadbalancer.connections.translated_sockets import PROTOCOLS, address_of
from tables.addressing import L3n4Addr

__all__ = ["BackendFlows"]


class BackendFlows:
    """How many live entries of connection tracking lead to a backend through a Service.

    To be called in a thread: half a second for a million entries.
    """

    def __init__(self, maps: ConntrackMaps, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._maps = maps
        self._now_s = now_s

    def __call__(self, backends: Collection[L3n4Addr]) -> dict[L3n4Addr, int]:
        """One number for each that was asked for, in one look at the maps for all."""
        counts = dict.fromkeys(backends, 0)
        places = {addr.packed_place for addr in backends}
        now_s = int(self._now_s())
        for raw in self._maps.connections.values():
            for raw_key, value in raw.items():
                if _place_in(raw_key) in places:
                    found = _backend(raw_key, value, now_s)
                    if found in counts:
                        counts[found] += 1
        return counts


def _place_in(raw_key: bytes) -> bytes:
    """The destination in a key: see ``CtKey`` for the layout."""
    size = 4 if len(raw_key) == 16 else 16
    return raw_key[:size] + raw_key[2 * size : 2 * size + 2]


def _backend(raw_key: bytes, value: bytes, now_s: int) -> L3n4Addr | None:
    """The destination of a live connection that a Service's frontend was dialled for."""
    key, entry = ct.decode_key(raw_key), ct.decode_entry(value)
    if key.direction != ct.Direction.EGRESS or not entry.rev_nat or ct.is_over(entry, now_s):
        return None
    if key.proto not in PROTOCOLS:
        return None
    return address_of(key.destination, key.destination_port, key.proto)

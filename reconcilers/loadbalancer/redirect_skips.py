# SPDX-License-Identifier: Apache-2.0
"""`desired-skiplbmap` into the maps of `bpf/maps/redirect_skips.py`.

Several rows may want one entry (two policies for one pod): it goes with the last of them. What rows
want is remembered; after a start that is rebuilt by the rows themselves, and `prune` takes away
what none of them wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bpf.errors import NotFound
from bpf.maps.redirect_skips import VALUE, PodSkipKey, SkipKey, SkipMaps, encode_key, line
from statedb import ReadTxn
from tables.loadbalancer.redirect_skips import RedirectSkip, skip_key
from tables.loadbalancer.redirect_skips import SkipKey as RowKey

__all__ = ["RedirectSkipOperations"]


class RedirectSkipOperations:
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(self, maps: SkipMaps) -> None:
        self._maps = maps
        # What each row has, or may have, in the maps.
        self._written: dict[RowKey, frozenset[bytes]] = {}

    def update(self, txn: ReadTxn, revision: int, obj: RedirectSkip) -> None:
        name, wanted = skip_key(obj), frozenset(_keys(obj))
        before = self._written.get(name, frozenset())
        self._written[name] = before | wanted
        for key in sorted(wanted):
            self._maps.of(key).update(key, VALUE)
        self._remove(before - wanted, name)
        self._written[name] = wanted

    def delete(self, txn: ReadTxn, revision: int, obj: RedirectSkip) -> None:
        name = skip_key(obj)
        self._remove(self._written.get(name, frozenset()) | frozenset(_keys(obj)), name)
        self._written.pop(name, None)

    def prune(self, txn: ReadTxn, objects: Iterable[RedirectSkip]) -> None:
        wanted = {key for row in objects for key in _keys(row)}.union(*self._written.values())
        for raw in self._maps:
            raw.delete_batch([key for key, _ in raw.items() if key not in wanted])

    def actual(self) -> Mapping[Any, Any]:
        return {key: value for raw in self._maps for key, value in raw.items()}

    def expected(
        self, txn: ReadTxn, objects: Iterable[RedirectSkip]
    ) -> Iterator[tuple[Any, Any, RedirectSkip]]:
        for row in objects:
            for key in _keys(row):
                yield key, VALUE, row

    def describe(self, key: Any, value: Any | None) -> tuple[str, str]:
        return line(key), "" if value is None else "present"

    def _remove(self, keys: Iterable[bytes], name: RowKey) -> None:
        others = {key for other, held in self._written.items() if other != name for key in held}
        for key in sorted(set(keys) - others):
            try:
                self._maps.of(key).delete(key)
            except NotFound:
                continue


def _keys(row: RedirectSkip) -> Iterator[bytes]:
    """Of sockets once the namespace of the pod is known; of packets by its addresses."""
    for address in row.frontends:
        packed = address.ip.packed
        if row.netns_cookie is not None:
            yield encode_key(SkipKey(row.netns_cookie, packed, address.port))
        for ip in row.pod_addresses:
            if len(ip.packed) == len(packed):
                yield encode_key(PodSkipKey(ip.packed, packed, address.port))

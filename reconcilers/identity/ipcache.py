# SPDX-License-Identifier: Apache-2.0
"""`ipcache`: the identity in force behind each prefix in the map ``cilia_ipcache``."""

from __future__ import annotations

from typing import Final

from bpf.maps import ipcache as codec
from bpf.maps.raw import RawMap
from reconcilers.config import Config
from reconcilers.maps.entries import MapEntries
from tables.identity.ipcache import IPCacheEntry

__all__ = ["CONFIG", "ipcache_operations"]

#: A prune reads all of the trie, which the kernel walks entry by entry: in a thread.
CONFIG: Final = Config(in_thread=True)


def ipcache_operations(raw: RawMap) -> MapEntries[IPCacheEntry]:
    """Operations over the map."""
    return MapEntries(
        raw, key=_key, value=_value, text=lambda key: f"prefix {codec.decode_key(key)}"
    )


def _key(row: IPCacheEntry) -> bytes:
    prefix = row.prefix
    return codec.encode_key(codec.IPCacheKey(prefix.packed, prefix.length, row.cluster_id))


def _value(row: IPCacheEntry) -> bytes:
    claim = row.in_force
    flags = codec.IPCacheFlag.REMOTECLUSTER if row.cluster_id else codec.IPCacheFlag(0)
    tunnel = b"" if claim.host is None else claim.host.packed
    return codec.encode_value(codec.IPCacheValue(claim.identity, tunnel, claim.encrypt_key, flags))

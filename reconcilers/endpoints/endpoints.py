# SPDX-License-Identifier: Apache-2.0
"""`endpoints`: the workloads of this node in the map ``cilia_endpoints``."""

from __future__ import annotations

from bpf.maps import endpoints as codec
from bpf.maps.raw import RawMap
from reconcilers.maps.entries import MapEntries
from tables.endpoints.endpoints import Endpoint

__all__ = ["endpoint_operations"]


def endpoint_operations(raw: RawMap) -> MapEntries[Endpoint]:
    """Operations over the map, given as bytes."""
    return MapEntries(
        raw,
        key=lambda ep: codec.encode_key(ep.index),
        value=_value,
        text=lambda key: f"device {codec.decode_key(key)}",
    )


def _value(ep: Endpoint) -> bytes:
    return codec.encode_value(
        codec.EndpointValue(
            ep.id,
            ep.identity,
            ep.ipv4.packed if ep.ipv4 is not None else b"",
            ep.ipv6.packed if ep.ipv6 is not None else b"",
            ep.mac,
            ep.node_mac,
        )
    )

# SPDX-License-Identifier: Apache-2.0
"""Which addresses of the node an agent before had chosen, from the maps that it left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bpf.maps.lb import SERVICE_VALUE, LBFamilyMaps, ServiceValue, decode_service_key
from bpf.maps.lb_numbers import FrontendType
from cilia.datapath.opening import Datapath
from cilia.node.node_addresses import InForce
from tables.addressing import IP

__all__ = ["addresses_in_force"]

_TYPE: Final = ServiceValue.__struct_fields__.index("type")
_OF_NODES: Final = (FrontendType.NODE_PORT.number, FrontendType.HOST_PORT.number)


def addresses_in_force(edge: Datapath) -> InForce:
    """Read the sources of packets that leave, and the addresses that node ports have."""
    primary = edge.flows.addresses() if edge.flows is not None else ()
    maps = edge.maps
    node_ports = {ip for family in (maps.v4, maps.v6) for ip in _node_port_addresses(family)}
    return InForce(primary, sorted(node_ports))


def _node_port_addresses(maps: LBFamilyMaps) -> Iterator[IP]:
    for key, value in maps.service.items():
        if SERVICE_VALUE.unpack(value)[_TYPE] in _OF_NODES:
            ip = IP.from_packed(decode_service_key(key).address)
            if not ip.is_unspecified:
                yield ip

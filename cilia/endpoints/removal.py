# SPDX-License-Identifier: Apache-2.0
"""What being the pod network of a node leaves in the kernel, taken away by `cilia cleanup`.

An instance that never was one has no directory of endpoints, and nothing here is looked at: another
instance on the machine has devices and routes of the same marks.
"""

from __future__ import annotations

from pathlib import Path

from cilia.endpoints import chained
from cilia.endpoints.router import HOST_DEVICE
from cilia.endpoints.saved import SavedEndpoints
from cilia.endpoints.state_files import ENDPOINTS
from cilia.linux.netlink import Netlink
from cilia.linux.requests import delete_link, delete_route
from reconcilers.node.devices import GROUP_CILIA
from tables.node.desired_routes import PROTOCOL_CILIA
from tables.node.routes import RouteType

__all__ = ["remove_pod_network"]


def remove_pod_network(run_dir: Path) -> list[str]:
    """Remove devices of endpoints, the gateway and the routes; return what was, a line each.

    Pods lose their network. Raises: OSError.
    """
    if not (run_dir / ENDPOINTS).is_dir():
        return []
    with Netlink() as netlink:
        devices = [ep.device for ep in SavedEndpoints(run_dir).read()]
        gone = sum(chained.let_go(netlink, device) for device in devices)
        gateway = netlink.link(HOST_DEVICE)
        if gateway is not None and gateway.group == GROUP_CILIA:
            netlink.request(delete_link(gateway.index))
        routes = [
            route
            for route in netlink.routes(protocol=PROTOCOL_CILIA)
            if route.kind == RouteType.UNREACHABLE
        ]
        for route in routes:
            netlink.request(delete_route(route))
    return [
        *([f"devices of {gone} endpoints"] if gone else []),
        *([f"{HOST_DEVICE}, the gateway of pods"] if gateway is not None else []),
        *([f"{len(routes)} routes of pods' prefixes"] if routes else []),
    ]

# SPDX-License-Identifier: Apache-2.0
"""The node's own network, wired: netlink -> devices, routes, neighbors, rules -> node-addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from cilia.linux.sysctl import Sysctl
from cilia.node.device_selection import DeviceFilter
from cilia.node.devices import DevicesReflector
from cilia.node.kernel_batch import KernelTables
from cilia.node.named_devices import NamedDevices
from cilia.node.node_addresses import InForce, NodeAddressConfig, NodeAddressController
from cilia.node.options import NodeOptions
from cilia.node.own_addresses import OwnAddresses, none_known
from cilia.program.errors import ProgramError
from cilia.program.parts import Context, Part
from statedb import RWTable
from tables.node.devices import new_devices_table
from tables.node.neighbors import new_neighbors_table
from tables.node.node_addresses import NodeAddress, new_node_addresses_table
from tables.node.routes import new_routes_table
from tables.node.rules import new_rules_table

__all__ = ["Network", "NodePart", "build"]


@dataclass(frozen=True)
class Network:
    """What the kernel has, and the way to ask it; `netns` None is the process's own namespace."""

    observed: KernelTables
    netlink: Netlink
    netns: NetNS | None
    sysctls: Sysctl


@dataclass(kw_only=True)
class NodePart(Part):
    addresses: RWTable[NodeAddress]
    # The addresses of this node's Node object.
    own: OwnAddresses
    # None: the kernel is not observed, and `node-addresses` is what others write into it.
    network: Network | None = None


def build(
    ctx: Context,
    options: NodeOptions,
    own: OwnAddresses = none_known,
    *,
    observe: bool,
    before: Callable[[], InForce] = InForce,
    netns: NetNS | None = None,
) -> NodePart:
    """Follow the network of a namespace; without `observe` there is a table and nothing else.

    `before`: reads what an agent before left in force.

    Raises:
        OSError: no netlink socket.
        ProgramError: `--procfs` leads to no proc file system.
    """
    db = ctx.db
    part = NodePart(addresses=new_node_addresses_table(db), own=own)
    if not observe:
        return part
    if not (options.procfs / "sys" / "net").is_dir():
        raise ProgramError(f"--procfs={options.procfs}: no proc file system with sys/net is there")
    observed = KernelTables(
        new_devices_table(db), new_routes_table(db), new_neighbors_table(db), new_rules_table(db)
    )
    part.network = network = Network(observed, Netlink(netns), netns, Sysctl(netns, options.procfs))
    patterns = DeviceFilter(options.device_patterns)
    part.jobs = {
        "reflect-devices": DevicesReflector(db, observed, netns=netns, patterns=patterns).run,
        "node-addresses": NodeAddressController(
            db,
            observed.devices,
            observed.routes,
            part.addresses,
            NodeAddressConfig(options.node_port_ranges),
            own,
            before,
        ).run,
    }
    if not patterns.is_empty:
        tell = partial(ctx.health_of("node"), "devices")
        part.jobs["named-devices"] = NamedDevices(db, observed.devices, patterns, tell).run
    part.closing.append(network.netlink.close)
    return part

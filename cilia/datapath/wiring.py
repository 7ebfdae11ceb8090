# SPDX-License-Identifier: Apache-2.0
"""The datapath of a node, wired: programs at hooks, devices that they know, what they remember.

devices -> netdevs -> cilia_netdev           devices that lead to clients and other nodes
Node objects -> cluster-nodes -> cilia_nodes who is a node of the cluster
devices, programs -> attachments -> links    the program of each hook of cgroup and devices
time -> conntrack, snat                      entries that expired
programs -> signal -> conntrack, snat        the same at once when source ports are rare
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilia.cluster.wiring import ClusterPart
from cilia.datapath.cluster_nodes import ClusterNodesController
from cilia.datapath.conntrack import FIRST_INTERVAL_S, MAX_INTERVAL_S, ConntrackGC
from cilia.datapath.map_pressure import MapPressure
from cilia.datapath.metrics import DatapathMetrics
from cilia.datapath.opening import Datapath
from cilia.datapath.options import DatapathOptions
from cilia.datapath.packet_devices import PacketDevicesController
from cilia.datapath.packets import FlowMaps
from cilia.datapath.port_pressure import PortPressure
from cilia.datapath.programs import Attaching, NodePrograms
from cilia.node.own_addresses import OwnAddresses
from cilia.node.repairs import Desired, Repairs
from cilia.node.wiring import Network, NodePart
from cilia.program.parts import Context, Job, Part
from reconcilers.datapath.cluster_nodes import cluster_node_operations
from reconcilers.datapath.netdevs import netdev_operations
from reconcilers.reconciler import Reconciler
from statedb import DB, Channel, RWTable, wait_initialized
from tables.datapath import attachments, cluster_nodes, netdevs
from tables.datapath.attachments import Attachment
from tables.datapath.cluster_nodes import ClusterNode

if TYPE_CHECKING:
    from reconcilers.datapath.attachment_places import FilterPlaces

__all__ = ["DatapathPart", "build", "build_attachments"]


@dataclass(kw_only=True)
class DatapathPart(Part):
    edge: Datapath
    pressure: MapPressure
    nodes: RWTable[ClusterNode]
    nodes_reconciler: Reconciler[ClusterNode]
    # None: maps in memory, no programs.
    programs: NodePrograms | None = None
    attachments: Desired[Attachment] | None = None
    # Tables whose rows the programs need in the kernel.
    needed: list[RWTable[Any]] = field(default_factory=list)

    async def synchronised(self, db: DB) -> None:
        """Wait until all Node objects were listed and every address was attempted."""
        await wait_initialized(db, self.nodes)
        await self.nodes_reconciler.wait_until_reconciled(db.look(self.nodes.revision))


def build(
    ctx: Context,
    options: DatapathOptions,
    cluster: ClusterPart,
    node: NodePart,
    edge: Datapath,
    programs: NodePrograms | None,
) -> DatapathPart:
    """Attach the programs and look after the maps that they write."""
    tell = partial(ctx.health_of("datapath"), "flow-maps")
    pressure = MapPressure(edge.all_maps(), tell=tell)
    nodes = cluster_nodes.new_cluster_nodes_table(ctx.db)
    reconciler = ctx.reconciler(nodes, cluster_node_operations(edge.nodes))
    part = DatapathPart(
        edge=edge,
        pressure=pressure,
        nodes=nodes,
        nodes_reconciler=reconciler,
        programs=programs,
        needed=[nodes],
    )
    controller = ClusterNodesController(ctx.db, cluster.nodes, nodes, options.node_name)
    part.jobs["cluster-nodes"] = controller.run
    part.jobs["reconcile-cluster-nodes"] = reconciler.run
    ctx.registry.register(part.pressure)
    part.jobs["map-pressure"] = part.pressure.run
    if node.network is None or programs is None:
        return part
    part.attachments = build_attachments(ctx, node.network, programs.attaching(), part)
    part.needed.append(part.attachments.table)
    filters = filter_places(node.network, options.pin_dir)
    if filters is not None:
        netns, read = node.network.netns, filters.program_ids
        programs.watch_filters(read if netns is None else partial(netns.run, read))
    if edge.flows is not None:
        part.jobs |= _packet_jobs(ctx, options, node.network, edge.flows, part, node.own)
    # Who wants more has an initializer of its own.
    part.attachments.owners_known(ctx.db)
    return part


def filter_places(network: Network, pin_dir: Path) -> FilterPlaces | None:
    """Return the places of programs of devices on a kernel without TCX, None with TCX."""
    from bpf import features
    from reconcilers.datapath.attachment_places import FilterPlaces

    return None if features.has_tcx() else FilterPlaces(network.netlink, pin_dir)


def build_attachments(
    ctx: Context, network: Network, attaching: Attaching, part: Part
) -> Desired[Attachment]:
    """Make the table and its reconciler; jobs and closing are added to `part`.

    Imported here: who attaches nothing needs no libbpf.
    """
    from reconcilers.datapath import attachments as targets
    from reconcilers.datapath.attachment_places import LinkPlaces
    from reconcilers.datapath.cgroup_places import CgroupPlaces

    filters = filter_places(network, attaching.device_links.parent)
    cgroups, links = CgroupPlaces(attaching.cgroup_links), LinkPlaces(attaching.device_links)
    part.closing += [cgroups.close, links.close]
    devices = network.observed.devices
    operations = targets.AttachmentOperations(
        devices,
        links,
        cgroups,
        filters,
        restore=attaching.restore,
        netns=network.netns,
    )
    table = attachments.new_attachments_table(ctx.db)
    with ctx.db.write_txn(table) as wtxn:
        for row in attaching.rows:
            table.insert(wtxn, row)
    repairs = Repairs(ctx, network)
    desired = repairs.reconcile(table, operations, targets.CONFIG)
    repairs.watch(desired.reconciler, devices, targets.concerns_attachments(table))
    repairs.retry_with_devices(table, attachments.TARGET)
    ask = desired.reconciler.verify_now
    directories = (attaching.device_links, attaching.cgroup_links, *attaching.objects)
    part.jobs |= repairs.jobs
    part.jobs["reconcile-attachments"] = _once_closed(attaching.published, desired.reconciler.run)
    part.jobs["watch-pins"] = targets.PinWatch(directories, ask).run
    if filters is not None:
        part.jobs["watch-filters"] = targets.FilterWatch(ask, network.netns).run
    return desired


def _once_closed(channel: Channel | None, job: Job) -> Job:
    async def run() -> None:
        if channel is not None:
            await channel.wait()
        await job()

    return run


def _packet_jobs(
    ctx: Context,
    options: DatapathOptions,
    network: Network,
    flows: FlowMaps,
    part: DatapathPart,
    own: OwnAddresses,
) -> dict[str, Job]:
    """Jobs around the programs of packets; what they hold is closed with `part`."""
    from bpf.ringbuf import Reader

    assert part.attachments is not None
    table = part.attachments.table
    metrics = DatapathMetrics(flows.read_metrics)
    ctx.registry.register(metrics)
    rows = netdevs.new_netdevs_table(ctx.db)
    part.needed.append(rows)
    devices = PacketDevicesController(
        ctx.db,
        network.observed.devices,
        rows,
        table,
        options,
        flows.programs_dir,
        own,
        flows.addresses(),
    )
    reconciler = ctx.reconciler(rows, netdev_operations(flows.netdev))
    signals = Reader.ring(flows.signal)
    part.closing.append(signals.close)
    ports = PortPressure(signals, partial(ctx.health_of("datapath"), "source-ports"))
    interval_s, max_interval_s = options.conntrack_gc_s
    # All flows of pods have entries then: there are many after hours without one.
    longest_s = FIRST_INTERVAL_S if options.pod_network else MAX_INTERVAL_S
    collector = ConntrackGC(
        flows.conntrack,
        interval_s=interval_s,
        max_interval_s=max_interval_s or longest_s,
        done=metrics.swept,
        pressed=ports.wait,
    )
    return {
        "packet-devices": devices.run,
        "reconcile-netdevs": reconciler.run,
        "conntrack-gc": collector.run,
        "source-ports": ports.run,
    }

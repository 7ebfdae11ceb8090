# SPDX-License-Identifier: Apache-2.0
"""The node's network as tables, wired: what the kernel has, what it is to have, and who sees to it.

    netlink -> devices, routes, neighbors, rules -> node-addresses
                   |  watches for drift
                   v
    desired-routes, desired-devices, desired-addresses, desired-rules, sysctl, attachments -> kernel

A part of `wiring.py` that stands on its own: it needs a database, and nothing of load balancing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cilia.datapath.programs import Attaching
from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from cilia.linux.sysctl import Sysctl
from cilia.node.device_selection import DeviceFilter
from cilia.node.devices import DevicesReflector
from cilia.node.kernel_batch import KernelTables
from cilia.node.node_addresses import NodeAddressConfig, NodeAddressController
from cilia.node.routes import DesiredRoutes
from reconcilers.config import Config
from reconcilers.kernel_watch import Concerns, KernelWatch, NamedArrivals
from reconcilers.metrics import Metrics
from reconcilers.node.addresses import AddressOperations, concerns_addresses
from reconcilers.node.devices import DeviceOperations, concerns_devices
from reconcilers.node.routes import RouteOperations, concerns_routes
from reconcilers.node.rules import RuleOperations, concerns_rules
from reconcilers.node.sysctl import SysctlOperations
from reconcilers.operations import Operations
from reconcilers.reconciler import Health, Reconciler
from reconcilers.verify import Drift
from statedb import DB, Channel, Index, RWTable, WriteTxn
from tables.datapath import attachments, netdevs
from tables.node import (
    desired_addresses,
    desired_devices,
    desired_routes,
    desired_rules,
    devices,
    neighbors,
    routes,
    rules,
    sysctl,
)
from tables.node.node_addresses import NodeAddress

__all__ = ["KernelEdge", "KernelOptions", "build_kernel"]

T = TypeVar("T")
Job = Callable[[], Awaitable[object]]

# Netlink blocks for as long as the kernel needs: rounds run in a thread. Events tell of drift; the
# read-back once a minute is for what an overrun or a bug of ours could hide.
CONFIG = Config(in_thread=True, verify_interval_s=60.0)
# /proc/sys tells nobody.
SYSCTL_CONFIG = Config(in_thread=True, verify_interval_s=10.0)


@dataclass(frozen=True)
class KernelOptions:
    # None: the namespace that the process is in.
    netns: NetNS | None = None
    devices: DeviceFilter = field(default_factory=DeviceFilter)
    node_addresses: NodeAddressConfig = field(default_factory=NodeAddressConfig)
    # None: no attachments, and nothing of BPF is loaded.
    attaching: Attaching | None = None


@dataclass
class KernelEdge:
    """The tables, the writer of routes, and the jobs that keep them and the kernel together."""

    db: DB
    observed: KernelTables
    desired_routes: RWTable[desired_routes.DesiredRoute]
    desired_devices: RWTable[desired_devices.DesiredDevice]
    desired_addresses: RWTable[desired_addresses.DesiredAddress]
    desired_rules: RWTable[desired_rules.DesiredRule]
    sysctl: RWTable[sysctl.SysctlSetting]
    attachments: RWTable[attachments.Attachment]
    netdevs: RWTable[netdevs.Netdev]
    routes_writer: DesiredRoutes
    netlink: Netlink
    jobs: dict[str, Job] = field(default_factory=dict)
    reconcilers: dict[str, Reconciler[Any]] = field(default_factory=dict)
    closing: list[Callable[[], None]] = field(default_factory=list)

    _owners: list[tuple[RWTable[Any], Callable[[WriteTxn], None]]] = field(default_factory=list)

    def desired_tables(self) -> tuple[RWTable[Any], ...]:
        return (
            self.desired_routes,
            self.desired_devices,
            self.desired_addresses,
            self.desired_rules,
            self.sysctl,
            self.attachments,
        )

    def owners_known(self) -> None:
        """To be called when every owner has written, or has registered an initializer of its own.

        Until then nothing in the kernel is taken away: what a former run left may still be wanted.
        """
        owners, self._owners = self._owners, []
        for table, mark_done in owners:
            with self.db.write_txn(table) as wtxn:
                mark_done(wtxn)

    def close(self) -> None:
        """Gives back what is held open; what is in force stays."""
        self.netlink.close()
        for close in self.closing:
            close()


def build_kernel(
    db: DB,
    drift: RWTable[Drift],
    node_addresses: RWTable[NodeAddress],
    options: KernelOptions,
    *,
    health: Callable[[str], Health] | None = None,
    metrics: Metrics | None = None,
) -> KernelEdge:
    """Makes the tables and all that moves between them and the kernel.

    Raises:
        OSError: no netlink socket.
    """
    edge = _new_edge(db, options.netns)
    observed = edge.observed
    reflector = DevicesReflector(db, observed, netns=options.netns, patterns=options.devices)
    addresses = NodeAddressController(
        db, observed.devices, observed.routes, node_addresses, options.node_addresses
    )
    edge.jobs = {"reflect-devices": reflector.run, "node-addresses": addresses.run}
    parts = _Parts(db, drift, edge, health, metrics)
    for build in (_build_routes, _build_devices, _build_addresses, _build_rules):
        build(parts)
    _build_sysctl(parts, Sysctl(options.netns))
    if options.attaching is not None:
        _build_attachments(parts, options.attaching, options.netns)
    return edge


def _new_edge(db: DB, netns: NetNS | None) -> KernelEdge:
    """The tables, each wanted one waiting for its owners; no jobs yet."""
    wanted_routes = desired_routes.new_desired_routes_table(db)
    edge = KernelEdge(
        db=db,
        observed=KernelTables(
            devices.new_devices_table(db),
            routes.new_routes_table(db),
            neighbors.new_neighbors_table(db),
            rules.new_rules_table(db),
        ),
        desired_routes=wanted_routes,
        desired_devices=desired_devices.new_desired_devices_table(db),
        desired_addresses=desired_addresses.new_desired_addresses_table(db),
        desired_rules=desired_rules.new_desired_rules_table(db),
        sysctl=sysctl.new_sysctl_table(db),
        attachments=attachments.new_attachments_table(db),
        netdevs=netdevs.new_netdevs_table(db),
        routes_writer=DesiredRoutes(wanted_routes),
        netlink=Netlink(netns),
    )
    for table in edge.desired_tables():
        with db.write_txn(table) as wtxn:
            edge._owners.append((table, table.register_initializer(wtxn, "owners")))
    return edge


@dataclass
class _Parts:
    """Adds reconcilers with their watches to an edge."""

    db: DB
    drift: RWTable[Drift]
    edge: KernelEdge
    health: Callable[[str], Health] | None
    metrics: Metrics | None

    def reconcile(
        self, table: RWTable[T], operations: Operations[T], rows: Any, config: Config = CONFIG
    ) -> Reconciler[T]:
        """`rows`: the module of the table, with get_status and set_status."""
        reconciler = Reconciler(
            self.db,
            table,
            operations,
            get_status=rows.get_status,
            set_status=rows.set_status,
            config=config,
            health=self.health(table.name) if self.health else None,
            metrics=self.metrics,
            drift=self.drift,
        )
        self.edge.reconcilers[table.name] = reconciler
        self.edge.jobs[f"reconcile-{table.name}"] = reconciler.run
        return reconciler

    def watch(
        self, reconciler: Reconciler[Any], observed: RWTable[T], concerns: Concerns[T]
    ) -> None:
        watch = KernelWatch(self.db, observed, concerns, reconciler.verify_now)
        self.edge.jobs[f"watch-{reconciler.name}"] = watch.run

    def retry_with_devices(self, table: RWTable[T], by_device: Index, rows: Any) -> None:
        arrivals = NamedArrivals(
            self.db,
            self.edge.observed.devices,
            devices.names,
            table,
            by_device,
            rows.get_status,
            rows.set_status,
        )
        self.edge.jobs[f"retry-{table.name}"] = arrivals.run


def _build_routes(parts: _Parts) -> None:
    edge, table = parts.edge, parts.edge.desired_routes
    operations = RouteOperations(edge.netlink, edge.observed.devices, table)
    reconciler = parts.reconcile(table, operations, desired_routes)
    parts.watch(reconciler, edge.observed.routes, concerns_routes(table))
    parts.retry_with_devices(table, desired_routes.DEVICE, desired_routes)


def _build_devices(parts: _Parts) -> None:
    edge, table = parts.edge, parts.edge.desired_devices
    operations = DeviceOperations(edge.netlink, table)
    reconciler = parts.reconcile(table, operations, desired_devices)
    parts.watch(reconciler, edge.observed.devices, concerns_devices(table))


def _build_addresses(parts: _Parts) -> None:
    edge, table = parts.edge, parts.edge.desired_addresses
    operations = AddressOperations(edge.netlink, edge.observed.devices, table)
    reconciler = parts.reconcile(table, operations, desired_addresses)
    parts.watch(reconciler, edge.observed.devices, concerns_addresses(table))
    parts.retry_with_devices(table, desired_addresses.DEVICE, desired_addresses)


def _build_rules(parts: _Parts) -> None:
    edge, table = parts.edge, parts.edge.desired_rules
    reconciler = parts.reconcile(table, RuleOperations(edge.netlink, table), desired_rules)
    parts.watch(reconciler, edge.observed.rules, concerns_rules(table))


def _build_sysctl(parts: _Parts, parameters: Sysctl) -> None:
    table = parts.edge.sysctl
    parts.reconcile(table, SysctlOperations(parts.db, parameters, table), sysctl, SYSCTL_CONFIG)


def _build_attachments(parts: _Parts, attaching: Attaching, netns: NetNS | None) -> None:
    """Imported here: an agent without attachments needs no libbpf."""
    from bpf import features
    from reconcilers.datapath import attachments as targets
    from reconcilers.datapath.attachment_places import FilterPlaces, LinkPlaces
    from reconcilers.datapath.cgroup_places import CgroupPlaces

    edge = parts.edge
    filters = None if features.has_tcx() else FilterPlaces(edge.netlink)
    cgroups = CgroupPlaces(attaching.cgroup_links)
    edge.closing.append(cgroups.close)
    operations = targets.AttachmentOperations(
        edge.observed.devices,
        LinkPlaces(attaching.device_links),
        cgroups,
        filters,
        restore=attaching.restore,
        netns=netns,
    )
    table = edge.attachments
    with parts.db.write_txn(table) as wtxn:
        for row in attaching.rows:
            table.insert(wtxn, row)
    reconciler = parts.reconcile(table, operations, attachments, targets.CONFIG)
    edge.jobs["reconcile-attachments"] = _once_closed(attaching.published, reconciler.run)
    parts.watch(reconciler, edge.observed.devices, targets.concerns_attachments(table))
    parts.retry_with_devices(table, attachments.TARGET, attachments)
    directories = (attaching.device_links, attaching.cgroup_links)
    edge.jobs["watch-pins"] = targets.PinWatch(directories, reconciler.verify_now).run
    if filters is not None:
        edge.jobs["watch-filters"] = targets.FilterWatch(reconciler.verify_now, netns).run


def _once_closed(channel: Channel | None, job: Job) -> Job:
    async def run() -> None:
        if channel is not None:
            await channel.wait()
        await job()

    return run

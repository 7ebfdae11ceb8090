# SPDX-License-Identifier: Apache-2.0
"""What the node's network is to have beside what others made: a function a kind.

    desired-routes, desired-devices, desired-addresses, desired-rules, sysctl -> kernel

A feature calls those that it writes to, so that no table, job or read-back is there that nobody
asked for.
"""

from __future__ import annotations

from typing import Final

from cilia.node.repairs import Desired, Repairs
from reconcilers.config import Config
from reconcilers.node.addresses import AddressOperations, concerns_addresses
from reconcilers.node.devices import DeviceOperations, concerns_devices
from reconcilers.node.routes import RouteOperations, concerns_routes
from reconcilers.node.rules import RuleOperations, concerns_rules
from reconcilers.node.sysctl import SysctlOperations
from tables.node import (
    desired_addresses,
    desired_devices,
    desired_routes,
    desired_rules,
    sysctl,
)
from tables.node.desired_addresses import DesiredAddress
from tables.node.desired_devices import DesiredDevice
from tables.node.desired_routes import DesiredRoute
from tables.node.desired_rules import DesiredRule
from tables.node.sysctl import SysctlSetting

# /proc/sys tells nobody.
SYSCTL_CONFIG: Final = Config(in_thread=True, verify_interval_s=10.0)


def build_routes(repairs: Repairs) -> Desired[DesiredRoute]:
    """Routes of ours, and whoever changes or covers one is undone."""
    network, db = repairs.network, repairs.ctx.db
    table = desired_routes.new_desired_routes_table(db)
    operations = RouteOperations(network.netlink, network.observed.devices, table)
    desired = repairs.reconcile(table, operations)
    repairs.watch(desired.reconciler, network.observed.routes, concerns_routes(table))
    repairs.retry_with_devices(table, desired_routes.DEVICE)
    return desired


def build_devices(repairs: Repairs) -> Desired[DesiredDevice]:
    """Network devices that we make."""
    network, db = repairs.network, repairs.ctx.db
    table = desired_devices.new_desired_devices_table(db)
    operations = DeviceOperations(network.netlink, table)
    desired = repairs.reconcile(table, operations)
    repairs.watch(desired.reconciler, network.observed.devices, concerns_devices(table))
    return desired


def build_addresses(repairs: Repairs) -> Desired[DesiredAddress]:
    """Addresses of ours on devices."""
    network, db = repairs.network, repairs.ctx.db
    table = desired_addresses.new_desired_addresses_table(db)
    operations = AddressOperations(network.netlink, network.observed.devices, table)
    desired = repairs.reconcile(table, operations)
    repairs.watch(desired.reconciler, network.observed.devices, concerns_addresses(table))
    repairs.retry_with_devices(table, desired_addresses.DEVICE)
    return desired


def build_rules(repairs: Repairs) -> Desired[DesiredRule]:
    """Routing rules of ours."""
    network, db = repairs.network, repairs.ctx.db
    table = desired_rules.new_desired_rules_table(db)
    desired = repairs.reconcile(table, RuleOperations(network.netlink, table))
    repairs.watch(desired.reconciler, network.observed.rules, concerns_rules(table))
    return desired


def build_sysctl(repairs: Repairs) -> Desired[SysctlSetting]:
    """Kernel parameters below /proc/sys."""
    db = repairs.ctx.db
    table = sysctl.new_sysctl_table(db)
    operations = SysctlOperations(db, repairs.network.sysctls, table)
    return repairs.reconcile(table, operations, SYSCTL_CONFIG)

# SPDX-License-Identifier: Apache-2.0
"""The node's part of its pods' network: the gateway, and what is not an endpoint's.

pools -> desired-devices    cilia_host and its other end cilia_net
         desired-addresses  the gateway of each pool, on cilia_host
         desired-routes     «unreachable» for each pool: what no endpoint has goes nowhere
         ip-allocations     the gateway is taken
         sysctl             forwarding
"""

from __future__ import annotations

from typing import Final

from cilia.endpoints.known import Known
from cilia.ipam.allocator import ROUTER, AddressTaken, Allocator, router_of
from cilia.ipam.pools import NodePools
from cilia.node.routes import DesiredRoutes
from cilia.program.health import HealthReporter
from statedb import DB, ReadTxn, RWTable, WatchSet, WriteTxn
from tables.addressing import Prefix
from tables.ipam.ip_allocations import IPAllocation
from tables.node.desired_addresses import DesiredAddress
from tables.node.desired_devices import DesiredDevice, VethSpec
from tables.node.desired_routes import DesiredRoute
from tables.node.routes import RouteScope, RouteType
from tables.node.sysctl import SysctlSetting

__all__ = ["HOST_DEVICE", "RouterController"]

HOST_DEVICE: Final = "cilia_host"
HOST_PEER: Final = "cilia_net"

#: Owner of the rows.
OWNER: Final = "pod-network"

#: Above all metrics that others give: a route to the prefix that somebody else made goes first.
UNREACHABLE_METRIC: Final = 0xFFFFFF


class RouterController:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        pools: NodePools,
        allocations: RWTable[IPAllocation],
        allocator: Allocator,
        devices: RWTable[DesiredDevice],
        addresses: RWTable[DesiredAddress],
        routes: RWTable[DesiredRoute],
        sysctls: RWTable[SysctlSetting],
        health: HealthReporter,
    ) -> None:
        self._db = db
        self._pools = pools
        self._allocations = allocations
        self._allocator = allocator
        self._devices = devices
        self._addresses = addresses
        self._routes = routes
        self._route_writer = DesiredRoutes(routes)
        self._sysctls = sysctls
        self._health = health
        # A start must not take the gateway away before it knows that it is wanted.
        self._known = Known(db, OWNER, devices, addresses, routes)

    async def run(self) -> None:
        """Follow the pools for ever."""
        while True:
            await self._db.look(self._look).wait()

    def _look(self, txn: ReadTxn) -> WatchSet:
        # Pods of a former pool keep its gateway until the last of them goes.
        watches = WatchSet(self._allocations.all_watch(txn)[1])
        pools = self._pools(txn, watches)
        refused = "" if pools else ", ".join(self._pools.refusals(txn))
        # With none, what pods of a former one use stays, and what nobody uses goes.
        if pools or self._known.said:
            self._write(pools)
        if refused:
            self._health.degraded("no pod can be given an address: give the node others", refused)
        elif pools:
            self._health.ok(f"pods get addresses of {', '.join(map(str, pools))}")
        else:
            self._health.degraded(
                "no pod can be given an address",
                "the Node object of this node has no spec.podCIDRs (or --node-name names another"
                " one); with --ipam=static say --ipv4-range",
            )
        return watches

    def _write(self, pools: tuple[Prefix, ...]) -> None:
        tables = (self._allocations, self._devices, self._addresses, self._routes, self._sysctls)
        with self._db.write_txn(*tables) as wtxn:
            self._write_device(wtxn)
            for pool in pools:
                self._write_pool(wtxn, pool)
            self._remove_former(wtxn, pools)
            for name in _forwarding(pools):
                if self._sysctls.get(wtxn, name) is None:
                    self._sysctls.insert(wtxn, SysctlSetting(name, "1"))
        if not self._known.said:
            self._known.say()

    def _write_device(self, wtxn: WriteTxn) -> None:
        if self._devices.get(wtxn, (OWNER, HOST_DEVICE)) is None:
            row = DesiredDevice(owner=OWNER, name=HOST_DEVICE, spec=VethSpec(HOST_PEER))
            self._devices.insert(wtxn, row)

    def _write_pool(self, wtxn: WriteTxn, pool: Prefix) -> None:
        """Write what a pool needs."""
        router = router_of(pool)
        try:
            self._allocator.claim(wtxn, router, ROUTER)
        except AddressTaken as error:
            self._health.degraded("the gateway of pods is an endpoint's address", error)
        # Else it would be the source towards pods, as the address that is most like theirs: a
        # server on the node that is asked at another address would answer with this one.
        address = DesiredAddress(
            owner=OWNER,
            device=HOST_DEVICE,
            address=router,
            prefix_len=router.bits,
            deprecated=router.is_ipv6,
        )
        if self._addresses.get(wtxn, (OWNER, HOST_DEVICE, router, router.bits)) is None:
            self._addresses.insert(wtxn, address)
        self._route_writer.upsert(
            wtxn,
            DesiredRoute(
                owner=OWNER,
                prefix=pool,
                type=RouteType.UNREACHABLE,
                scope=RouteScope.UNIVERSE,
                priority=UNREACHABLE_METRIC,
            ),
        )

    def _remove_former(self, wtxn: WriteTxn, pools: tuple[Prefix, ...]) -> None:
        """Remove what pools needed that this node has no more: another node may have them."""
        used = [row for row in self._allocations.all(wtxn) if not row.free_at and row.endpoint_id]
        for route in list(self._routes.prefix(wtxn, (OWNER,))):
            pool = route.prefix
            if pool in pools or any(pool.contains(row.ip) for row in used):
                continue
            self._route_writer.delete(wtxn, route)
            router = router_of(pool)
            if router not in map(router_of, pools):
                self._addresses.delete_key(wtxn, (OWNER, HOST_DEVICE, router, router.bits))
                self._allocator.release(wtxn, router)


def _forwarding(pools: tuple[Prefix, ...]) -> list[str]:
    names = []
    if any(not pool.is_ipv6 for pool in pools):
        names.append("net.ipv4.ip_forward")
    if any(pool.is_ipv6 for pool in pools):
        names.append("net.ipv6.conf.all.forwarding")
    return names

# SPDX-License-Identifier: Apache-2.0
"""The node's part of its pods' network: the gateway, and what is not an endpoint's.

pools -> desired-devices    cilia_host and its other end cilia_net
         desired-addresses  the gateway of each pool, on cilia_host
         desired-routes     «unreachable» for each pool: what no endpoint has goes nowhere
         ip-allocations     the gateway is taken
         sysctl             forwarding
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cilia.endpoints.known import Known
from cilia.ipam.allocator import ROUTER, AddressTaken, Allocator, router_of
from cilia.ipam.pools import NodePools
from cilia.node.routes import DesiredRoutes
from cilia.program.health import HealthReporter
from statedb import DB, ReadTxn, RWTable, Table, WatchSet, WriteTxn
from tables.addressing import IP, Prefix
from tables.ipam.ip_allocations import IPAllocation
from tables.node.desired_addresses import DesiredAddress
from tables.node.desired_devices import DesiredDevice, VethSpec
from tables.node.desired_routes import PROTOCOL_CILIA, DesiredRoute
from tables.node.routes import Route, RouteScope, RouteType
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
        in_force: Table[Route],
        is_external: bool = False,
    ) -> None:
        """`in_force`: the routes of the kernel, those of the run before among them.

        `is_external`: another plugin gives addresses and has their gateway.
        """
        self._is_external = is_external
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
        self._in_force = in_force
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
        if self._known.said:
            self._write(pools)
        elif (pools or self._is_external) and self._is_restored(txn, watches):
            self._write(pools, tuple(self._former(txn, pools)))
        if refused:
            self._health.degraded("no pod can be given an address: give the node others", refused)
        elif self._is_external:
            self._health.ok("another plugin gives pods their addresses")
        elif pools:
            self._health.ok(f"pods get addresses of {', '.join(map(str, pools))}")
        else:
            self._health.degraded(
                "no pod can be given an address",
                "the Node object of this node has no spec.podCIDRs (or --node-name names another"
                " one); with --ipam=static say --ipv4-range",
            )
        return watches

    def _is_restored(self, txn: ReadTxn, watches: WatchSet) -> bool:
        """True when the addresses of pods of the run before are known, and the kernel's routes."""
        tables = (self._allocations, self._in_force)
        watches.add(*(table.initialized_watch(txn)[1] for table in tables))
        return all(table.initialized(txn) for table in tables)

    def _former(self, txn: ReadTxn, pools: tuple[Prefix, ...]) -> Iterator[Prefix]:
        """Yield pools of the run before that pods still have addresses of."""
        used = self._used(txn)
        for route in self._in_force.all(txn):
            pool = route.destination
            kind = (route.protocol, route.type, route.priority)
            if kind != (PROTOCOL_CILIA, RouteType.UNREACHABLE, UNREACHABLE_METRIC):
                continue
            if pool not in pools and any(pool.contains(ip) for ip in used):
                yield pool

    def _used(self, txn: ReadTxn) -> list[IP]:
        """Return the addresses of pods."""
        rows = self._allocations.all(txn)
        return [row.ip for row in rows if not row.free_at and row.endpoint_id]

    def _write(self, pools: tuple[Prefix, ...], former: tuple[Prefix, ...] = ()) -> None:
        tables = (self._allocations, self._devices, self._addresses, self._routes, self._sysctls)
        with self._db.write_txn(*tables) as wtxn:
            if pools or former:
                self._write_device(wtxn)
            for pool in (*pools, *former):
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
        used = self._used(wtxn)
        for route in list(self._routes.prefix(wtxn, (OWNER,))):
            pool = route.prefix
            if pool in pools or any(pool.contains(ip) for ip in used):
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

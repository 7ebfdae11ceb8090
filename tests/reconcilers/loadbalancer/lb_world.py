# SPDX-License-Identifier: Apache-2.0
"""Frontends, fake maps and their reconciler, for tests without privilege."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bpf.errors import kernel_error
from bpf.maps.fake import FaultyMap
from bpf.maps.lb import LBMaps
from bpf.maps.lb_dump import dump
from bpf.maps.lb_numbers import FrontendType
from bpf.maps.raw import RawMap
from cilia.loadbalancer.options import LoadBalancerOptions
from reconcilers import Config, Drift, Reconciler, new_drift_table
from reconcilers.loadbalancer.frontends import FrontendOperations
from reconcilers.loadbalancer.machine_addresses import MachineAddresses
from statedb import DB
from statedb.status import pending
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.cluster.nodes import new_nodes_table
from tables.cluster.pods import new_pods_table
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.frontends import (
    Frontend,
    new_frontends_table,
)
from tables.loadbalancer.services import Service
from tables.node.devices import new_devices_table
from tables.node.node_addresses import NodeAddress, new_node_addresses_table
from tables.sources import Source
from tests.reconcilers.targets import FAST

ECHO = ServiceName("test/echo")

# The thin line without the entries for unknown ports, which would be in every dump.
PLAIN = LoadBalancerOptions(bpf_lb_enable_wildcard_entries=False)


class Killed(BaseException):
    """The process ends here."""


class Kernel:
    """What is there beyond a life of the agent: the maps, a log of writes, and a time to die."""

    def __init__(self) -> None:
        self.maps = LBMaps.fake()
        self.log: list[tuple[str, str, bytes]] = []
        self.writes_to_live: int | None = None
        self.after_write: Callable[[], None] = lambda: None
        self.refused: Callable[[str, str, bytes], bool] = lambda what, name, key: False

    def note(self, what: str, name: str, key: bytes) -> None:
        if self.writes_to_live is not None:
            if self.writes_to_live == 0:
                raise Killed
            self.writes_to_live -= 1
        if self.refused(what, name, key):
            raise kernel_error(f"{what} {name} (refused)", errno.ENOMEM)
        self.log.append((what, name, key))


class LoggedMap:
    """Writes entry by entry, telling the kernel of each."""

    def __init__(self, target: RawMap, kernel: Kernel) -> None:
        self.target = target
        self.kernel = kernel
        self.name = target.name
        self.max_entries = target.max_entries
        self.lookup = target.lookup
        self.items = target.items
        self.count = target.count
        self.clear = target.clear

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        self.kernel.note("update", self.name, key)
        self.target.update(key, value, flags)
        self.kernel.after_write()

    def delete(self, key: bytes) -> None:
        self.kernel.note("delete", self.name, key)
        self.target.delete(key)
        self.kernel.after_write()

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.update(key, value)

    def delete_batch(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.delete(key)


class LBWorld:
    """Tables, fake maps, operations and reconciler; `log` has all writes in order."""

    def __init__(
        self,
        config: LoadBalancerOptions = PLAIN,
        faults: float = 0.0,
        kernel: Kernel | None = None,
        reconciler_config: Config = FAST,
        seed: int = 1,
        clock: Callable[[], float] = time.monotonic,
        drift: bool = False,
    ) -> None:
        self.db = DB()
        self.frontends = new_frontends_table(self.db)
        self.node_addresses = new_node_addresses_table(self.db)
        self.nodes = new_nodes_table(self.db)
        self.devices = new_devices_table(self.db)
        self.pods = new_pods_table(self.db)
        self.drift = new_drift_table(self.db)
        self.kernel = kernel or Kernel()
        self.log = self.kernel.log
        rng = random.Random(seed)
        self.maps = self.kernel.maps.wrap(lambda raw: LoggedMap(raw, self.kernel)).wrap(
            lambda raw: FaultyMap(raw, faults, rng)
        )
        self.ops = FrontendOperations(
            self.maps, self.frontends, self.node_addresses, config, self.machines()
        )
        self.reconciler = Reconciler(
            self.db,
            self.frontends,
            self.ops,
            config=reconciler_config,
            clock=clock,
            rng=rng,
            drift=self.drift if drift else None,
        )

    def machines(self) -> MachineAddresses:
        return MachineAddresses(self.node_addresses, self.nodes, self.devices, self.pods)

    def drift_rows(self) -> list[Drift]:
        return list(self.drift.all(self.db.read_txn()))

    def put(self, *frontends: Frontend) -> None:
        with self.db.write_txn(self.frontends) as wtxn:
            for fe in frontends:
                self.frontends.insert(wtxn, fe)

    def remove(self, *addresses: str) -> None:
        with self.db.write_txn(self.frontends) as wtxn:
            for text in addresses:
                fe = self.frontends.get(wtxn, L3n4Addr.parse(text))
                assert fe is not None
                self.frontends.delete(wtxn, fe)

    def set_nodes(self, *addresses: str) -> None:
        """All node addresses, each answering for node ports."""
        with self.db.write_txn(self.node_addresses) as wtxn:
            self.node_addresses.delete_all(wtxn)
            for text in addresses:
                self.node_addresses.insert(wtxn, NodeAddress(IP.parse(text), True, True, "eth0"))

    async def settled(self) -> None:
        revision = self.frontends.revision(self.db.read_txn())
        await self.reconciler.wait_until_reconciled(revision, settled=True)

    async def attempted(self) -> None:
        revision = self.frontends.revision(self.db.read_txn())
        await self.reconciler.wait_until_reconciled(revision)

    def dump(self) -> str:
        return dump(self.kernel.maps)

    def frontend(self, address: str) -> Frontend:
        fe = self.frontends.get(self.db.read_txn(), L3n4Addr.parse(address))
        assert fe is not None
        return fe


def service(name: ServiceName = ECHO, **fields: Any) -> Service:
    return Service(name, Source.K8S, **fields)


def backend(address: str, state: BackendState = BackendState.ACTIVE, **fields: Any) -> Backend:
    return Backend(ECHO, L3n4Addr.parse(address), state=state, **fields)


def frontend(
    address: str,
    backends: Iterable[str | Backend] = (),
    kind: FrontendType = FrontendType.CLUSTER_IP,
    svc: Service | None = None,
    redirect_to: ServiceName | None = None,
) -> Frontend:
    """A pending row; backends given as text are active. They are put into address order."""
    addr = L3n4Addr.parse(address)
    rows = sorted(
        (backend(be) if isinstance(be, str) else be for be in backends), key=lambda be: be.address
    )
    svc = svc or service()
    return Frontend(
        addr,
        kind,
        svc.name,
        "",
        addr.port,
        svc,
        tuple(rows),
        tuple(rows),
        redirect_to,
        pending(),
    )

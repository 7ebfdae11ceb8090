# SPDX-License-Identifier: Apache-2.0
"""Frontends, fake maps and their reconciler, for tests without privilege."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from typing import Any

from bpf.maps.fake import FaultyMap
from bpf.maps.lb import LBMaps
from bpf.maps.lb_dump import dump
from bpf.maps.raw import RawMap
from reconcilers import Config, Reconciler
from reconcilers.frontends import FrontendConfig, FrontendOperations
from statedb import DB
from statedb.status import pending
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.backends import Backend, BackendState
from tables.frontends import (
    Frontend,
    FrontendType,
    get_status,
    new_frontends_table,
    set_status,
)
from tables.node_addresses import NodeAddress, new_node_addresses_table
from tables.services import Service
from tables.sources import Source
from tests.reconcilers.targets import FAST

ECHO = ServiceName("test/echo")

# The thin line without the entries for unknown ports, which would be in every dump.
PLAIN = FrontendConfig(wildcard_entries=False)


class CountingMap:
    """Counts the entries written and deleted."""

    def __init__(self, target: RawMap, log: list[tuple[str, str, bytes]]) -> None:
        self.target = target
        self.log = log
        self.name = target.name
        self.max_entries = target.max_entries
        self.lookup = target.lookup
        self.items = target.items
        self.clear = target.clear

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        self.log.append(("update", self.name, key))
        self.target.update(key, value, flags)

    def delete(self, key: bytes) -> None:
        self.log.append(("delete", self.name, key))
        self.target.delete(key)

    def update_batch(self, keys: Any, values: Any) -> None:
        self.log.extend(("update", self.name, key) for key in keys)
        self.target.update_batch(keys, values)

    def delete_batch(self, keys: Any) -> None:
        self.log.extend(("delete", self.name, key) for key in keys)
        self.target.delete_batch(keys)


class LBWorld:
    """Tables, fake maps, operations and reconciler; `log` has all writes in order."""

    def __init__(
        self,
        config: FrontendConfig = PLAIN,
        faults: float = 0.0,
        maps: LBMaps | None = None,
        reconciler_config: Config = FAST,
        seed: int = 1,
    ) -> None:
        self.db = DB()
        self.frontends = new_frontends_table(self.db)
        self.node_addresses = new_node_addresses_table(self.db)
        self.fakes = maps or LBMaps.fake()
        self.log: list[tuple[str, str, bytes]] = []
        rng = random.Random(seed)
        self.maps = self.fakes.wrap(lambda raw: CountingMap(raw, self.log)).wrap(
            lambda raw: FaultyMap(raw, faults, rng)
        )
        self.ops = FrontendOperations(self.maps, self.frontends, self.node_addresses, config)
        self.reconciler = Reconciler(
            self.db,
            self.frontends,
            self.ops,
            get_status=get_status,
            set_status=set_status,
            config=dataclasses.replace(reconciler_config),
            rng=rng,
        )

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

    def dump(self) -> str:
        return dump(self.fakes)

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

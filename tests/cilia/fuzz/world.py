# SPDX-License-Identifier: Apache-2.0
"""An agent's control plane without an event loop: files, stream, reflectors, controllers, maps.

Everything is called in turn as its job would call it, so that each piece of work that would hold
the event loop can be timed by itself, and everything is compared after each input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Final, cast

import msgspec

from bpf.maps.lb import LBMaps
from cilia.cluster.nodes import namespace_reflector, node_reflector
from cilia.cluster.objects import ObjectReflector
from cilia.cluster.pods import pod_reflector
from cilia.cluster.problems import ProblemReflector
from cilia.k8s import crds
from cilia.k8s import objects as k8s
from cilia.k8s.access import Access
from cilia.k8s.api_servers import Servers, parse_server
from cilia.k8s.client import Client
from cilia.k8s.errors import ApiError
from cilia.k8s.followed import Followed
from cilia.k8s.ledger import Ledger
from cilia.k8s.manifest_files import FileContent, Manifests, decode_file, manifest_items
from cilia.k8s.object_events import ObjectEvents
from cilia.k8s.resource import Resource
from cilia.k8s.state_file import _items
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import PROBLEMS, Delete, Event, Invalid, Listed, Listing, Upsert
from cilia.k8s.watch_report import WatchReport
from cilia.k8s.watch_stream import Mistrust, StreamReader
from cilia.loadbalancer.host_ports import HostPortController
from cilia.loadbalancer.local_node import LocalNodeController
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.redirects.controller import RedirectController, RedirectTables
from cilia.loadbalancer.redirects.reflector import redirect_policy_reflector
from cilia.loadbalancer.services.reflector import KINDS, ServiceReflector
from cilia.loadbalancer.services.writer import LoadBalancerTables, Writer
from cilia.loadbalancer.this_node import LocalNode
from cilia.loadbalancer.wiring import _weight
from reconcilers.loadbalancer.frontends import FrontendOperations
from reconcilers.reconciler import Reconciler
from statedb import DB, RWTable
from statedb.shown.columns import cells, columns_of
from statedb.shown.plain import json_line, shown
from tables.addressing import IP
from tables.cluster.namespaces import new_namespaces_table
from tables.cluster.nodes import new_nodes_table
from tables.cluster.pod_namespaces import new_pod_namespaces_table
from tables.cluster.pods import new_pods_table
from tables.loadbalancer.redirect_policies import new_redirect_policies_table
from tables.loadbalancer.redirect_skips import new_redirect_skips_table
from tables.node.node_addresses import NodeAddress, new_node_addresses_table
from tables.problems import new_problems_table
from tests.cilia.fuzz.forms import NODE
from tests.reconcilers.targets import FAST

# The processor time that one piece of work may hold the event loop for, in seconds.
HELD_S: Final = 0.1

MODELS: Final[dict[str, type[k8s.K8sObject]]] = {
    **{model.KIND: model for model in k8s.KINDS.values()},
    crds.CiliumLocalRedirectPolicy.KIND: crds.CiliumLocalRedirectPolicy,
}


class Audience:
    """Receives what a stream tells."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def tell(self, events: list[Event]) -> None:
        self.events += events

    async def room(self) -> None:
        """There is always room."""


class World:
    """Takes events and files; `slowest_s` is the longest that one piece of work took."""

    def __init__(self) -> None:
        self.db = DB()
        self.problems = new_problems_table(self.db)
        self.tables = LoadBalancerTables(self.db, self.problems)
        config = LoadBalancerOptions(enable_local_redirect_policy=True, bpf_lb_mode_annotation=True)
        self.writer = Writer(self.db, self.tables, config, LocalNode(NODE))
        store = ObjectStore()
        self.pods = new_pods_table(self.db)
        nodes, namespaces = new_nodes_table(self.db), new_namespaces_table(self.db)
        policies = new_redirect_policies_table(self.db)
        self.services = ServiceReflector(store, self.writer)
        self.reflectors: dict[str, ObjectReflector[Any, Any]] = {
            "Pod": pod_reflector(store, self.db, self.pods, NODE, self.problems),
            "Node": node_reflector(store, self.db, nodes, self.problems),
            "Namespace": namespace_reflector(store, self.db, namespaces, self.problems),
            "CiliumLocalRedirectPolicy": redirect_policy_reflector(
                store, self.db, policies, self.problems
            ),
        }
        self.refusals = ProblemReflector(store, self.db, self.problems)
        redirect = RedirectTables(
            policies=policies,
            pods=self.pods,
            namespaces=new_pod_namespaces_table(self.db),
            skips=new_redirect_skips_table(self.db),
        )
        self.redirects = RedirectController(self.writer, redirect)
        self.host_ports = HostPortController(self.writer, self.pods)
        with self.db.write_txn(self.pods) as wtxn:
            self._pod_changes = self.pods.changes(wtxn)
        self.local_node = LocalNodeController(
            self.writer, nodes, changed=self.services.reconvert_node_dependent
        )
        self.maps = LBMaps.fake()
        self._reconciler = self._new_reconciler(config)
        self.manifests = {"file": Manifests(), "state file": Manifests("lb-state-file")}
        # Connected to by nobody.
        self._client = Client(
            Access(anonymous=True), Servers([parse_server("https://192.0.2.1:6443")])
        )
        self.slowest_s, self.slowest = 0.0, ""

    def _new_reconciler(self, config: LoadBalancerOptions) -> Reconciler[Any]:
        addresses = new_node_addresses_table(self.db)
        with self.db.write_txn(addresses) as wtxn:
            addresses.insert(wtxn, NodeAddress(IP.parse("192.0.2.1"), True, True, "eth0"))
        clock = count()
        return Reconciler(
            self.db,
            self.tables.frontends,
            FrontendOperations(self.maps, self.tables.frontends, addresses, config),
            config=FAST,
            clock=lambda: float(next(clock)),
            weight=_weight,
        )

    # -- what comes in

    def put_file(self, route: str, name: str, content: FileContent) -> list[Event]:
        return self._take(self.timed("file", self.manifests[route].put, name, content))

    def remove_file(self, route: str, name: str) -> list[Event]:
        return self._take(self.manifests[route].remove(name))

    def take_object(self, kind: str, data: bytes) -> list[Event]:
        events = ObjectEvents(MODELS[kind])
        key = (kind, "hostile", "bad")
        raw = msgspec.Raw(data)
        return self._take(self.timed("object", events.of_object, key, raw, 7.0))

    def take_line(self, kind: str, line: bytes) -> list[Event]:
        """A line of a watch, which may mistrust it and list again."""
        audience, ledger, model = Audience(), Ledger(), MODELS[kind]
        report = WatchReport(kind, ledger, self._client.servers)
        events = ObjectEvents(model)
        followed = Followed(self._client, Resource(model), audience, ledger, events, report)
        with suppress(ApiError, Mistrust):
            self.timed("line", StreamReader(followed).take, [line])
        return self._take(audience.events)

    def listed(self) -> None:
        """Say that everything was read."""
        names = [*(kind.KIND for kind in KINDS), *self.reflectors, PROBLEMS]
        self._take([event for name in names for event in (Listing(name), Listed(name))])

    def _take(self, events: list[Event]) -> list[Event]:
        by_kind: dict[str, list[Event]] = {}
        for event in events:
            by_kind.setdefault(kind_of(event), []).append(event)
        refused = by_kind.pop(PROBLEMS, [])
        services = [event for kind in KINDS for event in by_kind.pop(kind.KIND, [])]
        if refused:
            self.timed("problems", self.refusals.apply, refused)
        if services:
            self.timed("services", self.services.apply, services)
        for kind, reflector in self.reflectors.items():
            if kind in by_kind:
                self.timed(kind, reflector.apply, by_kind.pop(kind))
        assert not by_kind, f"nobody takes {by_kind}"
        self._settle()
        return events

    def _settle(self) -> None:
        self.timed("local node", self.local_node.step)
        self.timed("host ports", self.host_ports.step, self._pod_changes)
        self.timed("redirects", self.redirects.step)
        for _ in range(2_000):
            if not self.timed("reconciler", self._reconciler._cycle).more:
                break

    def timed(self, what: str, work: Callable[..., Any], *args: Any) -> Any:
        began = time.thread_time()
        try:
            return work(*args)
        finally:
            took_s = time.thread_time() - began
            if took_s > self.slowest_s:
                self.slowest_s, self.slowest = took_s, what

    # -- what there is

    def rows(self) -> dict[tuple[str, Any], Any]:
        """Every row of every table that inputs lead to."""
        txn = self.db.read_txn()
        tables: Iterable[RWTable[Any]] = cast("Any", self.db.tables())
        return {
            (table.name, table.primary_key(row)): row for table in tables for row in table.all(txn)
        }

    def entries(self) -> dict[tuple[str, bytes], bytes]:
        """Every entry of every map."""
        return {(raw.name, key): value for raw in self.maps.all() for key, value in raw.items()}

    def sizes(self) -> dict[str, int]:
        """How much each cache holds."""
        parts: dict[str, object] = {
            "services": self.services,
            "objects": self.services._known,
            "slices": self.services._known._slices,
            "complaints": self.services._batch_writer._complaints,
            "unwritten": self.services._batch_writer,
            "host ports": self.host_ports,
            "redirects": self.redirects,
            "problems": self.refusals,
            **self.reflectors,
            **self.manifests,
        }
        return {
            f"{name}.{attribute}": len(value)
            for name, part in parts.items()
            for attribute, value in _attributes(part)
            if isinstance(value, dict | list | set) and attribute != "_by_service"
        }

    def show(self, rows: Iterable[tuple[str, Any]]) -> Iterator[str]:
        """Rows, each with the name of its table, as the doors show them."""
        for name, row in rows:
            table = self.db.table(name)
            yield from cells(columns_of(table), row)
            yield json_line(shown(table, row)).decode()


def _attributes(part: object) -> Iterator[tuple[str, object]]:
    """Also of an instance of a compiled class, which has no `__dict__`."""
    names = getattr(type(part), "__mypyc_attrs__", ()) or vars(part)
    return ((name, getattr(part, name)) for name in names)


def kind_of(event: Event) -> str:
    match event:
        case Upsert():
            return event.obj.KIND
        case Delete():
            return event.key[0]
        case Invalid():
            return PROBLEMS
    return event.kind


def decoded(route: str, name: str, data: bytes) -> FileContent:
    return decode_file(name, data, _items if route == "state file" else manifest_items)

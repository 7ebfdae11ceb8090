# SPDX-License-Identifier: Apache-2.0
"""Local redirect policies: the rows that follow from policies and the pods of this node.

A policy is a service of its own (``ns/policy:local-redirect``) whose backends are the node's ready
pods that it selects. An address that it matches is a frontend of that service; the cluster
addresses of a service that it matches show that service's backends. Either happens only once a
backend can serve the frontend: until then traffic goes where it went. The whole is computed anew
when anything of it changes, from one snapshot: policies and pods of a node are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.selection import in_order, matching
from cilia.loadbalancer.services.writer import Initializers, ServiceChange, Writer
from statedb import Initializer, ReadTxn, RWTable, Table, WatchSet, WriteTxn
from tables.addressing import IP, SCOPE_EXTERNAL, L3n4Addr, ServiceName
from tables.cluster.pod_namespaces import PodNamespace
from tables.cluster.pods import Pod, pod_key
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import REDIRECT, SERVICE, FrontendParams, params_of
from tables.loadbalancer.redirect_policies import FrontendMatch, RedirectPolicy
from tables.loadbalancer.redirect_skips import RedirectSkip, SkipKey, skip_key
from tables.loadbalancer.services import Service
from tables.problems import Problem, replace_problems
from tables.sources import Source

INITIALIZER: Final = "redirect-policies"
_ORIGIN: Final = "redirect-policies"


class Redirection(msgspec.Struct, frozen=True):
    """A policy with the pods that serve it now."""

    policy: RedirectPolicy
    backends: tuple[Backend, ...]
    # "namespace/name" of those pods.
    pods: tuple[str, ...]

    def serves(self, params: FrontendParams) -> bool:
        """Whether a backend fits the frontend's port name, protocol and family."""
        return bool(matching(params.address, params.port_name, self.backends))


def redirection(policy: RedirectPolicy, pods: Iterable[Pod]) -> Redirection:
    """Pods count while they are ready, with the ports that they declare."""
    names: dict[L3n4Addr, tuple[str, ...]] = {}
    serving: list[str] = []
    for pod in pods:
        if not _is_candidate(policy, pod):
            continue
        found = list(_addresses(policy, pod))
        for address, name in found:
            before = names.get(address, ())
            names[address] = (*before, name) if name and name not in before else before
        if found:
            serving.append(pod_key(pod))
    service = policy.redirect_service
    backends = [Backend(service, addr, port_names=of) for addr, of in names.items()]
    return Redirection(policy, tuple(in_order(backends)), tuple(serving))


def _is_candidate(policy: RedirectPolicy, pod: Pod) -> bool:
    return (
        pod.namespace == policy.name.namespace
        and pod.ready
        and not pod.deleting
        and policy.selector.matches(pod.labels)
    )


def _addresses(policy: RedirectPolicy, pod: Pod) -> Iterator[tuple[L3n4Addr, str]]:
    """Declared ports that the policy names, each with the name by which frontends find it."""
    for container in pod.containers:
        for declared in container.ports:
            for port in policy.backend_ports:
                if (port.port, port.protocol) == (declared.port, declared.protocol):
                    for ip in pod.ips:
                        yield L3n4Addr.of(ip, port.port, port.protocol), port.name


def wants(policy: RedirectPolicy, params: FrontendParams) -> bool:
    """Whether a policy for a service redirects this one of its frontends."""
    address = params.address
    if params.type is not FrontendType.CLUSTER_IP or address.scope != SCOPE_EXTERNAL:
        return False
    if policy.match is FrontendMatch.ALL:
        return True
    for fe in policy.frontends:
        same_port = (fe.address.port, fe.address.protocol) == (address.port, address.protocol)
        if same_port and (
            policy.match is FrontendMatch.SERVICE_PORT or fe.port_name == params.port_name.lower()
        ):
            return True
    return False


def own_frontends(redirection: Redirection, config: LoadBalancerOptions) -> list[FrontendParams]:
    """The addresses of an address policy that a backend can serve."""
    policy = redirection.policy
    if policy.service is not None:
        return []
    wanted = [
        FrontendParams(fe.address, FrontendType.LOCAL_REDIRECT, fe.port_name, fe.address.port)
        for fe in policy.frontends
        if (config.enable_ipv6 if fe.address.is_ipv6 else config.enable_ipv4)
    ]
    served = (params for params in wanted if redirection.serves(params))
    return sorted(served, key=lambda params: params.address)


class _Plan(msgspec.Struct):
    """What one look at the tables leads to."""

    redirections: dict[ServiceName, Redirection] = {}
    # Frontends of each redirect service, in address order.
    redirected: dict[ServiceName, list[L3n4Addr]] = {}
    problems: list[Problem] = []


class _Reading(Enum):
    """What there is to say of the inputs."""

    GOES_ON = "goes on"
    # What is missing cannot be read now.
    STALLED = "stalled"
    COMPLETE = "complete"


class RedirectTables(msgspec.Struct, frozen=True):
    """What there is beside the writer's tables; the controller writes ``skips`` alone."""

    policies: RWTable[RedirectPolicy]
    pods: RWTable[Pod]
    namespaces: RWTable[PodNamespace]
    skips: RWTable[RedirectSkip]


class RedirectController:
    """Keeps redirections equal to policies and pods. ``run`` ends only when it is cancelled."""

    def __init__(
        self,
        writer: Writer,
        tables: RedirectTables,
    ) -> None:
        self._writer = writer
        self._tables = tables
        self._complete = writer.register_initializer(INITIALIZER)
        with writer.db.write_txn(tables.skips) as wtxn:
            self._skips_complete = tables.skips.register_initializer(wtxn, INITIALIZER)
        self._completed = False
        # Caches of the tables: what is in force, by redirect service; service policies by service.
        self._held: dict[ServiceName, Redirection] = {}
        self._by_service: dict[ServiceName, list[Redirection]] = {}
        writer.set_redirects(self._redirect_for)

    async def run(self) -> None:
        while True:
            await self.step().wait()

    def step(self) -> WatchSet:
        """Does what there is to do; returns what to wait for."""
        txn, t = self._writer.db.read_txn(), self._tables
        watch = WatchSet()
        policies, changed = t.policies.all_watch(txn)
        watch.add(changed)
        redirections = self._redirections(txn, list(policies), watch)
        plan = self._plan(txn, redirections, watch)
        reading = self._reading(txn, watch)
        self._write_skips(txn, plan, reading)
        self._write(plan, reading)
        self._completed = self._completed or reading is _Reading.COMPLETE
        return watch

    def _reading(self, txn: ReadTxn, watch: WatchSet) -> _Reading:
        """How far the inputs are, if that is news."""
        if self._completed:
            return _Reading.GOES_ON
        t = self._tables
        inputs: list[Table[Any]] = [t.policies, t.pods, t.namespaces]
        filled = [table.filled_watch(txn) for table in inputs]
        if all(table.initialized(txn) for table in inputs):
            return _Reading.COMPLETE
        watch.add(*(changed for _, changed in filled))
        return _Reading.STALLED if all(done for done, _ in filled) else _Reading.GOES_ON

    # -- what is wanted

    def _redirections(
        self, txn: ReadTxn, policies: Sequence[RedirectPolicy], watch: WatchSet
    ) -> dict[ServiceName, Redirection]:
        if not policies:
            return {}
        rows, changed = self._tables.pods.all_watch(txn)
        watch.add(changed)
        if any(policy.skip_redirect_from_backend for policy in policies):
            watch.add(self._tables.namespaces.all_watch(txn)[1])
        pods = list(rows)
        return {policy.redirect_service: redirection(policy, pods) for policy in policies}

    def _plan(
        self, txn: ReadTxn, redirections: dict[ServiceName, Redirection], watch: WatchSet
    ) -> _Plan:
        plan = _Plan(redirections)
        taken: dict[L3n4Addr, ServiceName] = {}
        for name, redirection in redirections.items():
            service = redirection.policy.service
            if service is None:
                own = own_frontends(redirection, self._writer.config)
                plan.redirected[name] = [params.address for params in own]
                continue
            fes, changed = self._writer.tables.frontends.list_watch(txn, service, SERVICE)
            watch.add(changed)
            plan.redirected[name] = []
            for params in sorted(map(params_of, fes), key=lambda params: params.address):
                if not wants(redirection.policy, params) or not redirection.serves(params):
                    continue
                first = taken.setdefault(params.address, name)
                if first is name:
                    plan.redirected[name].append(params.address)
                else:
                    plan.problems.append(_taken(redirection.policy, params.address, first))
        return plan

    def _redirect_for(self, service: ServiceName, params: FrontendParams) -> ServiceName | None:
        """For the writer: so that a frontend that is new is never seen without its redirection."""
        for redirection in self._by_service.get(service, ()):
            if wants(redirection.policy, params) and redirection.serves(params):
                return redirection.policy.redirect_service
        return None

    # -- writing

    def _write(self, plan: _Plan, reading: _Reading) -> None:
        if not plan.redirections and not self._held and reading is _Reading.GOES_ON:
            return
        writer = self._writer
        by_service: dict[ServiceName, list[Redirection]] = {}
        for redirection in plan.redirections.values():
            if redirection.policy.service is not None:
                by_service.setdefault(redirection.policy.service, []).append(redirection)
        with writer.write_txn() as wtxn:
            for name in [name for name in self._held if name not in plan.redirections]:
                self._set_redirects(wtxn, name, ())
                writer.apply(wtxn, ServiceChange(name, None, (), ()))
            for name, redirection in plan.redirections.items():
                self._apply(wtxn, name, redirection, plan.redirected[name])
            table = writer.tables.problems
            replace_problems(table, wtxn, _ORIGIN, plan.problems, writer.now())
            _tell(self._complete, wtxn, reading)
        self._held, self._by_service = plan.redirections, by_service

    def _apply(
        self,
        wtxn: WriteTxn,
        name: ServiceName,
        redirection: Redirection,
        redirected: Sequence[L3n4Addr],
    ) -> None:
        """Frontends are redirected once the backends are there, and freed before they go."""
        is_service = redirection.policy.service is not None
        if is_service:
            self._set_redirects(wtxn, name, redirected, only_free=True)
        own = own_frontends(redirection, self._writer.config)
        service = Service(name, Source.K8S)
        self._writer.apply(wtxn, ServiceChange(name, service, own, redirection.backends))
        if is_service:
            self._set_redirects(wtxn, name, redirected)

    def _set_redirects(
        self,
        wtxn: WriteTxn,
        name: ServiceName,
        wanted: Iterable[L3n4Addr],
        *,
        only_free: bool = False,
    ) -> None:
        addresses = set(wanted)
        for fe in list(self._writer.tables.frontends.list(wtxn, name, REDIRECT)):
            if fe.address not in addresses:
                self._writer.set_redirect(wtxn, fe.address, None)
        if not only_free:
            for address in sorted(addresses):
                self._writer.set_redirect(wtxn, address, name)

    # -- what pods are spared

    def _write_skips(self, txn: ReadTxn, plan: _Plan, reading: _Reading) -> None:
        wanted = {skip_key(row): row for row in self._skips(txn, plan)}
        table = self._tables.skips
        news = reading is not _Reading.GOES_ON
        if not (wanted or news or table.num_objects(txn)):
            return
        with self._writer.db.write_txn(table) as wtxn:
            held: Mapping[SkipKey, RedirectSkip] = {skip_key(row): row for row in table.all(wtxn)}
            for key, row in wanted.items():
                before = held.get(key)
                if before is None or msgspec.structs.replace(row, status=before.status) != before:
                    table.insert(wtxn, row)
            for key, row in held.items():
                if key not in wanted:
                    table.delete(wtxn, row)
            _tell(self._skips_complete, wtxn, reading)

    def _skips(self, txn: ReadTxn, plan: _Plan) -> Iterator[RedirectSkip]:
        for name, redirection in plan.redirections.items():
            policy = redirection.policy
            addresses = tuple(plan.redirected[name])
            if not policy.skip_redirect_from_backend or not addresses:
                continue
            for pod in redirection.pods:
                namespace = self._tables.namespaces.get(txn, pod)
                cookie = None if namespace is None else namespace.cookie
                yield RedirectSkip(
                    pod, policy.name, addresses, cookie, self._pod_addresses(txn, pod)
                )

    def _pod_addresses(self, txn: ReadTxn, name: str) -> tuple[IP, ...]:
        """Those by which the pod's packets are known."""
        pod = self._tables.pods.get(txn, name)
        return () if pod is None or pod.host_network else pod.ips


def _tell(initializer: Initializer | Initializers, wtxn: WriteTxn, reading: _Reading) -> None:
    if reading is _Reading.COMPLETE:
        initializer(wtxn)
    elif reading is _Reading.STALLED:
        initializer.stall(wtxn)


def _taken(policy: RedirectPolicy, address: L3n4Addr, first: ServiceName) -> Problem:
    return Problem(
        _ORIGIN,
        f"{address} is redirected by {first.removesuffix(':local-redirect')} already",
        kind="CiliumLocalRedirectPolicy",
        namespace=policy.name.namespace,
        name=policy.name.name,
        field="spec.redirectFrontend",
    )

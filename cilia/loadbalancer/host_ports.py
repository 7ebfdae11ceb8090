# SPDX-License-Identifier: Apache-2.0
"""Host ports of local pods, each made a service that forwards to its pod.

``convert_pod`` is pure; ``HostPortController`` follows the table of pods. A service is named by the
pod's unique id, so that a pod and its successor of the same name are two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from bpf.maps.lb_numbers import FrontendType
from cilia.k8s.objects import unexpected
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.services.writer import KEEP, ServiceChange, Writer
from statedb import Change, ChangeIterator, RWTable, WatchSet, WriteTxn
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.cluster.pods import ContainerPort, Pod, pod_key
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.services import Service
from tables.problems import Problem, replace_problems
from tables.sources import Source

ENDED: Final = ("Succeeded", "Failed")
_ANY_V4: Final = IP.parse("0.0.0.0")
_ANY_V6: Final = IP.parse("::")

Changes = dict[ServiceName, ServiceChange]


class ConvertedPod(msgspec.Struct, frozen=True):
    changes: Changes = msgspec.field(default_factory=dict)
    # Host ports that are left out, and why.
    warnings: tuple[str, ...] = ()


def convert_pod(pod: Pod, config: LoadBalancerOptions) -> ConvertedPod:
    """The services of a running pod's host ports, TCP and UDP of one port together."""
    changes: Changes = {}
    warnings: list[str] = []
    for container in pod.containers:
        for port in container.ports:
            if not port.host_port or pod.host_network:
                continue
            if config.node_port_min <= port.host_port <= config.node_port_max:
                warnings.append(f"host port {port.host_port} is in the range of node ports")
                continue
            name = ServiceName(f"{pod.namespace}/{pod.name}:host-port:{port.host_port}:{pod.uid}")
            if not _add(changes, name, pod, port, config):
                warnings.append(
                    f"host port {port.host_port} is asked for both on loopback and elsewhere: "
                    "the first is used"
                )
    return ConvertedPod(changes, tuple(warnings))


def _add(
    changes: Changes,
    name: ServiceName,
    pod: Pod,
    port: ContainerPort,
    config: LoadBalancerOptions,
) -> bool:
    """Adds a port to its service; false if it does not agree with the ports that are there."""
    loopback = port.host_ip is not None and port.host_ip.is_loopback
    before = changes.get(name)
    if before is None:
        service = Service(name, Source.K8S, loopback_host_port=loopback)
        before = ServiceChange(name, service, (), ())
    if not isinstance(before.service, Service) or before.service.loopback_host_port != loopback:
        return False
    ips = [ip for ip in pod.ips if (config.enable_ipv6 if ip.is_ipv6 else config.enable_ipv4)]
    wanted = {params.address: params for params in before.frontends}
    for ip in _frontend_ips(port.host_ip, ips):
        address = L3n4Addr.of(ip, port.host_port, port.protocol)
        wanted[address] = FrontendParams(address, FrontendType.HOST_PORT, "", port.host_port)
    serving = {be.address: be for be in before.backends} if before.backends is not KEEP else {}
    for ip in ips:
        address = L3n4Addr.of(ip, port.port, port.protocol)
        serving[address] = Backend(name, address)
    changes[name] = ServiceChange(
        name,
        before.service,
        tuple(wanted[address] for address in sorted(wanted)),
        tuple(serving.values()),
    )
    return True


def _frontend_ips(host_ip: IP | None, pod_ips: list[IP]) -> Iterator[IP]:
    """The address asked for; for none, any or loopback, what stands for all of the node's.

    Loopback becomes such a surrogate too: that the port is for the node alone is a flag.
    """
    if host_ip is None or host_ip.is_unspecified:
        if any(not ip.is_ipv6 for ip in pod_ips):
            yield _ANY_V4
        if any(ip.is_ipv6 for ip in pod_ips):
            yield _ANY_V6
    elif host_ip.is_loopback:
        yield _ANY_V6 if host_ip.is_ipv6 else _ANY_V4
    else:
        yield host_ip


class _Held(msgspec.Struct, frozen=True):
    """What a pod made of the tables."""

    uid: str
    converted: ConvertedPod


class HostPortController:
    """Keeps the services of host ports equal to the pods of the node."""

    def __init__(
        self,
        writer: Writer,
        pods: RWTable[Pod],
    ) -> None:
        self._writer = writer
        self._pods = pods
        self._complete = writer.register_initializer("host-ports")
        self._completed = False
        # A cache of the tables, by pod.
        self._held: dict[str, _Held] = {}

    async def run(self) -> None:
        """Ends only when it is cancelled; may be called again after a failure."""
        with self._writer.db.write_txn(self._pods) as wtxn:
            changes = self._pods.changes(wtxn)
        try:
            # What went while nobody looked is in no change: look at everything once.
            self._apply(self._missing())
            while True:
                await self.step(changes).wait()
        finally:
            changes.close()

    def _missing(self) -> list[Change[Pod]]:
        txn = self._writer.db.read_txn()
        held = {key: self._pods.get(txn, key) for key in self._held}
        return [Change(_pod_of(key), 0, True) for key, pod in held.items() if pod is None]

    def step(self, iterator: ChangeIterator[Pod]) -> WatchSet:
        """Does what there is to do; returns what to wait for."""
        txn = self._writer.db.read_txn()
        changes, changed = iterator.next(txn)
        filled, filling = self._pods.filled_watch(txn)
        initialized = self._pods.initialized(txn)
        mark: Callable[[WriteTxn], None] | None = None
        if initialized and not self._completed:
            mark = self._complete
        elif filled and not initialized:
            mark = self._complete.stall
        self._apply(list(changes), mark)
        self._completed = self._completed or initialized
        return WatchSet(changed) if initialized else WatchSet(changed, filling)

    def _apply(
        self, changes: Sequence[Change[Pod]], mark: Callable[[WriteTxn], None] | None = None
    ) -> None:
        wanted = {pod_key(c.obj): self._wanted(c.obj, c.deleted) for c in changes}
        if not wanted and mark is None:
            return
        with self._writer.write_txn() as wtxn:
            for key, held in wanted.items():
                self._write(wtxn, key, held.converted if held else ConvertedPod())
            if mark is not None:
                mark(wtxn)
        for key, held in wanted.items():
            if held is None:
                self._held.pop(key, None)
            else:
                self._held[key] = held

    def _wanted(self, pod: Pod, deleted: bool) -> _Held | None:
        """A pod that is on its way up or down keeps what it has, and its successor has nothing."""
        if deleted or pod.phase in ENDED:
            return None
        if pod.phase == "Running" and not pod.deleting:
            return _Held(pod.uid, self._converted(pod))
        held = self._held.get(pod_key(pod))
        return held if held is not None and held.uid == pod.uid else None

    def _converted(self, pod: Pod) -> ConvertedPod:
        """The pod's services; those that it had if it cannot be converted."""
        try:
            return convert_pod(pod, self._writer.config)
        except Exception as error:  # noqa: BLE001 - of this pod alone
            held = self._held.get(pod_key(pod))
            changes = held.converted.changes if held is not None else {}
            return ConvertedPod(changes, (unexpected(error),))

    def _write(self, wtxn: WriteTxn, key: str, converted: ConvertedPod) -> None:
        before = self._held[key].converted if key in self._held else ConvertedPod()
        for name in sorted(before.changes.keys() - converted.changes.keys()):
            self._writer.apply(wtxn, ServiceChange(name, None, (), ()))
        for change in converted.changes.values():
            self._writer.apply(wtxn, change)
        if converted.warnings or before.warnings:
            self._complain(wtxn, key, converted.warnings)

    def _complain(self, wtxn: WriteTxn, key: str, warnings: Sequence[str]) -> None:
        origin, (namespace, name) = f"Pod:{key}", key.split("/")
        rows = [
            Problem(origin, text, kind="Pod", namespace=namespace, name=name) for text in warnings
        ]
        replace_problems(self._writer.tables.problems, wtxn, origin, rows, time.time())


def _pod_of(key: str) -> Pod:
    namespace, name = key.split("/")
    return Pod(namespace, name)

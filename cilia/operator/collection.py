# SPDX-License-Identifier: Apache-2.0
"""Jobs of the leader that delete objects of the pod network which nobody uses any more.

    pods, namespaces, CiliumEndpoints, CiliumIdentities -> collectors -> API server, or files

All of it is made anew with each leadership, with empty tables: who did not lead has not seen what
was used meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from cilia.cluster.collection import Collected, unread_of
from cilia.cluster.inputs import Input, Kept, open_source
from cilia.cluster.k8s_watches import K8sWatchReflector
from cilia.cluster.nodes import namespace_reflector
from cilia.cluster.objects import ObjectReflector
from cilia.cluster.problems import ProblemReflector
from cilia.endpoints.k8s_endpoints.collection import EndpointCollector
from cilia.endpoints.k8s_endpoints.objects import EndpointObjects
from cilia.endpoints.k8s_endpoints.reflector import k8s_endpoint_reflector
from cilia.identity.collection import IdentityCollector, Inputs, Rate, Unused
from cilia.identity.objects import IdentityObjects
from cilia.identity.reflector import identity_reflector
from cilia.k8s import objects as k8s
from cilia.k8s.crds import CiliumEndpoint, CiliumIdentity
from cilia.k8s.errors import ApiError
from cilia.k8s.object_writer import SharedObjects
from cilia.k8s.objects import K8sObject
from cilia.k8s.resource import Resource
from cilia.k8s.watch import FollowedSource
from cilia.operator.config import OperatorConfig
from cilia.operator.metrics import CollectionMetrics
from cilia.program.health import HealthReporter
from cilia.script.environment import parse_duration
from statedb import DB, RWTable, wait_initialized
from tables.cluster.k8s_watches import new_k8s_watches_table
from tables.cluster.namespaces import new_namespaces_table
from tables.cluster.pods import Pod, new_pods_table
from tables.endpoints.k8s_endpoints import IDENTITY, new_k8s_endpoints_table
from tables.identity.identities import new_k8s_identities_table
from tables.problems import new_problems_table

__all__ = ["Collection", "collect", "open_objects"]

#: Kinds that are written.
SHARED: Final[tuple[type[K8sObject], ...]] = (CiliumIdentity, CiliumEndpoint)
READ: Final[tuple[type[K8sObject], ...]] = (k8s.Pod, k8s.Namespace)

#: Until the next look after one that failed.
RETRY_S: Final = 10.0

Collect = Callable[[], Awaitable[Collected]]


def open_objects(config: OperatorConfig) -> Input:
    """Open the objects of the whole cluster. Raises: ProgramError."""
    resources = [Resource(kind) for kind in (*READ, *SHARED)]
    return open_source(config, resources, SHARED, Kept(), service_address=True)


async def collect(
    config: OperatorConfig, health: Callable[[str], HealthReporter], metrics: CollectionMetrics
) -> None:
    """Collect until cancelled. `health`: by name of a collector. Raises: ApiError, ProgramError."""
    opened = open_objects(config)
    assert opened.shared is not None
    collection = Collection(config, opened.source, opened.shared)
    try:
        async with opened.writing, anyio.create_task_group() as group:
            for job in (*opened.jobs.values(), *collection.reflectors):
                group.start_soon(_run, job)
            await collection.read()
            for what, interval_s, look in collection.collectors:
                if interval_s:
                    group.start_soon(_follow, interval_s, look, health(what), metrics, what)
    finally:
        for what, _, _ in collection.collectors:
            health(what).stopped("Another replica leads, or it begins anew")


async def _run(job: Callable[[], Awaitable[object]]) -> None:
    await job()


class Collection:
    """Tables, what fills them, and what looks at them."""

    def __init__(
        self,
        config: OperatorConfig,
        source: Any,
        shared: SharedObjects,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.db = db = DB("collection")
        self.problems = problems = new_problems_table(db)
        watches = new_k8s_watches_table(db)
        self.identities = new_k8s_identities_table(db)
        self.endpoints = new_k8s_endpoints_table(db, IDENTITY)
        self.pods = new_pods_table(db)
        self.namespaces = new_namespaces_table(db)
        self._tables: tuple[RWTable[Any], ...] = (
            *(self.identities, self.endpoints, self.pods, self.namespaces),
        )
        told = K8sWatchReflector(db, watches, lambda part, ok, message: None)
        sources = {id(source): source, id(shared.source): shared.source}.values()
        for followed in sources:
            if isinstance(followed, FollowedSource):
                followed.observe(told.report)
        self.reflectors = (
            *(
                ProblemReflector(followed, db, problems, name=f"source-{number}").run
                for number, followed in enumerate(sources)
            ),
            identity_reflector(shared.source, db, self.identities, problems).run,
            k8s_endpoint_reflector(shared.source, db, self.endpoints, problems).run,
            ObjectReflector(source, k8s.Pod, db, self.pods, _convert_pod, problems).run,
            namespace_reflector(source, db, self.namespaces, problems).run,
        )
        kinds = [kind.KIND for kind in (*READ, *SHARED)]
        unread = unread_of(self._tables, watches, problems, kinds)
        endpoints = EndpointCollector(
            db,
            self.endpoints,
            self.pods,
            problems,
            unread,
            EndpointObjects(self.endpoints, shared.writer),
        )
        interval_s = parse_duration(config.identity_gc_interval)
        identities = IdentityCollector(
            db,
            Inputs(self.identities, self.endpoints, self.pods, self.namespaces, unread),
            IdentityObjects(shared.writer),
            Unused(parse_duration(config.identity_heartbeat_timeout), interval_s),
            Rate(
                config.identity_gc_rate_limit,
                parse_duration(config.identity_gc_rate_interval),
                clock,
            ),
            clock,
        )
        #: Name, seconds between two looks (0: none), and what looks.
        self.collectors: tuple[tuple[str, float, Collect], ...] = (
            ("endpoint-gc", parse_duration(config.cilium_endpoint_gc_interval), endpoints.collect),
            ("identity-gc", interval_s, identities.collect),
        )

    async def read(self) -> None:
        """Wait until all is read whole."""
        for table in (*self._tables, self.problems):
            await wait_initialized(self.db, table)


def _convert_pod(obj: k8s.Pod) -> Pod:
    """The little of a pod that collectors look at: there may be 100,000."""
    meta, status = obj.metadata, obj.status
    return Pod(
        meta.namespace,
        meta.name,
        uid=meta.uid,
        host_network=obj.spec.host_network,
        phase=status.phase if status is not None else "",
        labels=meta.labels or {},
        service_account=obj.spec.service_account_name,
    )


async def _follow(
    interval_s: float, look: Collect, health: HealthReporter, metrics: CollectionMetrics, what: str
) -> None:
    """Look for ever."""
    while True:
        wait_s = min(interval_s, RETRY_S)
        try:
            collected = await look()
        except ApiError as failure:
            health.degraded("nothing more is collected until the next look", str(failure))
            metrics.failed(what)
        else:
            metrics.collected(what, collected.outcomes)
            if collected.unread:
                health.degraded("nothing is collected: not read whole", ", ".join(collected.unread))
            else:
                health.ok("collects what nobody uses")
                wait_s = interval_s
        await anyio.sleep(wait_s)

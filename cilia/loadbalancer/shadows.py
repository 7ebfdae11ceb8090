# SPDX-License-Identifier: Apache-2.0
"""One service name, several sources: the preferred one is served, the others wait behind it.

Used by the writer inside its transactions. Backends need none of this: each source has its own
rows, and the selection prefers among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from statedb import RWTable, WriteTxn
from tables.addressing import ServiceName
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.services import Service
from tables.loadbalancer.shadowed_services import NAME, ShadowedService, shadow_key
from tables.problems import Problem, replace_problems
from tables.sources import PRIORITY, Source


def is_preferred(service: Service, other: Service) -> bool:
    return PRIORITY[service.source] < PRIORITY[other.source]


class Shadows:
    """The services that wait, and for each a problem row that lasts as long."""

    def __init__(
        self,
        shadows: RWTable[ShadowedService],
        problems: RWTable[Problem],
        now: Callable[[], float],
    ) -> None:
        self._shadows = shadows
        self._problems = problems
        self._now = now

    def put(
        self,
        wtxn: WriteTxn,
        service: Service,
        frontends: Iterable[FrontendParams],
        preferred: Service,
    ) -> None:
        """Keeps what a source asks for while another is preferred."""
        self._shadows.insert(wtxn, ShadowedService(service, tuple(frontends)))
        name = service.name
        problem = Problem(
            _origin(name, service.source),
            f"is defined by {preferred.source} too, which is preferred to {service.source}",
            kind="Service",
            namespace=name.namespace,
            name=name.name,
        )
        replace_problems(self._problems, wtxn, problem.origin, (problem,), self._now())

    def drop(self, wtxn: WriteTxn, name: ServiceName, source: Source) -> None:
        """Forgets what a source asked for, if anything."""
        if not self._shadows.num_objects(wtxn):
            return
        row = self._shadows.get(wtxn, (name, PRIORITY[source]))
        if row is not None:
            self._shadows.delete(wtxn, row)
            replace_problems(self._problems, wtxn, _origin(name, source), (), self._now())

    def take(self, wtxn: WriteTxn, name: ServiceName) -> ShadowedService | None:
        """The most preferred that waits, which waits no more."""
        if not self._shadows.num_objects(wtxn):
            return None
        best = min(self._shadows.list(wtxn, name, NAME), key=shadow_key, default=None)
        if best is not None:
            self.drop(wtxn, name, best.service.source)
        return best


def _origin(name: ServiceName, source: Source) -> str:
    return f"loadbalancer:{source}:{name}"

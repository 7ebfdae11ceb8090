# SPDX-License-Identifier: Apache-2.0
"""Keeps the state of one watch, and reports it."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from cilia.k8s.api_servers import Servers
from cilia.k8s.errors import ApiError
from cilia.k8s.ledger import Ledger
from cilia.k8s.watch_state import Anomaly, State, WatchState

log = structlog.get_logger("k8s")

# Progress of the stream is reported at most so often.
PROGRESS_S = 1.0


class WatchReport:
    """Owns `state`. `report` is told each change, and at times how far the stream is."""

    def __init__(
        self,
        resource: str,
        ledger: Ledger,
        servers: Servers,
        report: Callable[[WatchState], None] = lambda state: None,
    ) -> None:
        self.state = WatchState(resource)
        self._ledger = ledger
        self._servers = servers
        self._report = report
        self._reported_at = 0.0

    def enter(self, state: State) -> None:
        self.state.state = state
        self._tell()

    def listed(self) -> None:
        """All objects were sent."""
        self.state.listed = True

    def repaired(self, cause: str, what: str) -> None:
        """A list for this cause told a difference."""
        self.state.repairs[cause, what] += 1

    def progressed(self) -> None:
        """The stream brought something."""
        self.state.last_event_at = time.time()
        if time.monotonic() - self._reported_at >= PROGRESS_S:
            self._tell()

    def proven(self) -> None:
        """What was told is equal to a list."""
        self.state.proven_at = time.time()
        self.state.proofs += 1
        self._tell()

    def cost_of_proof(self, size: int, cpu_s: float) -> None:
        self.state.proof_bytes += size
        self.state.proof_cpu_s += cpu_s

    def anomaly(self, what: Anomaly) -> None:
        self.state.anomalies[what] += 1
        self.state.last_anomaly_at = time.time()
        self._tell()

    def error(self, error: ApiError) -> None:
        """Log a failure; it is reported with the state that follows from it."""
        self.state.errors += 1
        self.state.error = str(error)
        self.state.last_error_at = time.time()
        resource = self.state.resource
        log.warning("reading from the API server failed", resource=resource, error=str(error))

    def _tell(self) -> None:
        self.state.server = str(self._servers.current)
        self.state.revision = self._ledger.revision
        self.state.objects = len(self._ledger.versions)
        self._reported_at = time.monotonic()
        self._report(self.state)

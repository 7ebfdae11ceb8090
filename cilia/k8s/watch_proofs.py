# SPDX-License-Identifier: Apache-2.0
"""Proofs of one watch, again and again: after each reconnection, and otherwise an interval.

A difference means a list, which repairs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
import structlog

from cilia.k8s.errors import ApiError
from cilia.k8s.followed import Followed
from cilia.k8s.proof import Proof, prove
from cilia.k8s.signal import Signal
from cilia.k8s.watch_retry import moment_s
from cilia.k8s.watch_state import Anomaly, State

log = structlog.get_logger("k8s")


class Prover:
    """`moved` is set when the stream has brought something; `list_due` says that a list comes next,
    which is a proof; `list_again` is told why one has to."""

    def __init__(
        self,
        followed: Followed,
        moved: Signal,
        page_size: int,
        interval_s: float,
        list_due: Callable[[], bool],
        list_again: Callable[[str], None],
    ) -> None:
        self._followed = followed
        self._moved = moved
        self._page_size = page_size
        self._interval_s = interval_s
        self._list_due = list_due
        self._list_again = list_again
        self._wanted = Signal()

    def prove_now(self) -> None:
        """Do not wait for the interval to end."""
        self._wanted.set()

    async def run(self) -> None:
        """Prove until cancelled."""
        report = self._followed.report
        while True:
            with anyio.move_on_after(self._interval_s * random.uniform(0.9, 1.0)):
                await self._wanted.wait()
            self._wanted.clear()
            if report.state.state is not State.WATCHING:
                continue  # what comes next, a list or a new watch, is a proof or asks for one
            try:
                await self._prove()
            except ApiError as error:
                report.error(error)
                await anyio.sleep(2 * moment_s())
                self._wanted.set()

    async def _prove(self) -> None:
        client, resource, _, ledger, _, report = self._followed
        proof = await prove(client, resource, ledger, self._moved, self._page_size, self._list_due)
        if proof is None:
            return
        report.cost_of_proof(proof.versions.bytes, proof.versions.cpu_s)
        if proof.rewound:
            self._other_history(proof)
        elif proof.differences:
            self._missed(proof)
        else:
            report.proven()

    def _other_history(self, proof: Proof) -> None:
        self._followed.report.anomaly(Anomaly.REWOUND)
        log.warning(
            "versions went back, the API server has another history; listing again",
            resource=self._followed.resource.name,
            told=self._followed.ledger.revision,
            listed=proof.versions.revision,
        )
        self._list_again("history")

    def _missed(self, proof: Proof) -> None:
        self._followed.report.anomaly(Anomaly.MISSED)
        log.warning(
            "a watch missed changes; listing again",
            resource=self._followed.resource.name,
            added=len(proof.differences.added),
            changed=len(proof.differences.changed),
            deleted=len(proof.differences.deleted),
        )
        self._list_again("proof")

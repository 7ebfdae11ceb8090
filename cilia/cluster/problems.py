# SPDX-License-Identifier: Apache-2.0
"""The table ``problems``: objects that a source refuses go in, and each row is logged once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import structlog

from cilia.cluster.batch import WAIT_S, batches
from cilia.cluster.sweep import Sweep
from cilia.k8s.watch import PROBLEMS, Event, Invalid, Listed, Listing, Source
from cilia.k8s.watch import Problem as Refusal
from statedb import DB, Channel, RWTable, WriteTxn
from tables.problems import Problem, replace_problems

INITIALIZER: Final = "source"

log = structlog.get_logger("agent")


class ProblemReflector:
    """Follows the problems of one source.

    ``name`` tells the reflectors of several sources apart.
    """

    def __init__(
        self,
        source: Source,
        db: DB,
        problems: RWTable[Problem],
        *,
        name: str = INITIALIZER,
        wait_s: float = WAIT_S,
    ) -> None:
        self._source = source
        self._db = db
        self._problems = problems
        self._wait_s = wait_s
        # Origins with rows.
        self._origins: set[str] = set()
        self._sweep = Sweep[str]()
        with db.write_txn(problems) as wtxn:
            self._complete = problems.register_initializer(wtxn, name)

    async def run(self) -> None:
        async for events in batches(self._source.watch(), self._wait_s):
            self.apply(events)

    def apply(self, events: Iterable[Event]) -> None:
        with self._db.write_txn(self._problems) as wtxn:
            for event in events:
                if isinstance(event, Invalid):
                    self._replace(wtxn, event)
                elif isinstance(event, Listing):
                    self._sweep.begin(event.kind, self._origins)
                elif isinstance(event, Listed):
                    for origin in self._sweep.end(event.kind):
                        self._replace(wtxn, Invalid(origin))
                    self._complete(wtxn)

    def _replace(self, wtxn: WriteTxn, event: Invalid) -> None:
        self._sweep.seen(PROBLEMS, event.origin)
        self._origins.add(event.origin)
        rows = [_row(event.origin, problem) for problem in event.problems]
        replace_problems(self._problems, wtxn, event.origin, rows, time.time())
        if not rows:
            self._origins.discard(event.origin)


class ProblemLog:
    """Logs each problem once, whoever wrote it."""

    def __init__(self, db: DB, problems: RWTable[Problem]) -> None:
        self._db = db
        with db.write_txn(problems) as wtxn:
            self._changes = problems.changes(wtxn)

    async def run(self) -> None:
        """Log what is new, for ever."""
        while True:
            await self._log_new().wait()

    def _log_new(self) -> Channel:
        """Log the new rows; return what closes with the next one. No snapshot is kept."""
        changes, more = self._changes.next(self._db.read_txn())
        for change in changes:
            if not change.deleted:
                problem = change.obj
                log.warning("wrong object", problem=str(problem), origin=problem.origin)
        return more


def _row(origin: str, refusal: Refusal) -> Problem:
    return Problem(
        origin,
        refusal.message,
        refusal.file,
        refusal.document,
        refusal.kind,
        refusal.namespace,
        refusal.name,
        refusal.field,
    )

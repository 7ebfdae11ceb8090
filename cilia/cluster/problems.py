# SPDX-License-Identifier: Apache-2.0
"""What a source of objects refuses, into the table ``problems``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from cilia.cluster.batch import WAIT_S, batches
from cilia.k8s.watch import Event, Invalid, Listed, Source
from cilia.k8s.watch import Problem as Refusal
from statedb import DB, RWTable
from tables.problems import Problem, replace_problems

INITIALIZER: Final = "source"


class ProblemReflector:
    """Follows the problems of one source; ``warn`` is told each one once.

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
        warn: Callable[[Problem], None] = lambda problem: None,
    ) -> None:
        self._source = source
        self._db = db
        self._problems = problems
        self._wait_s = wait_s
        self._warn = warn
        with db.write_txn(problems) as wtxn:
            self._complete = problems.register_initializer(wtxn, name)

    async def run(self) -> None:
        async for events in batches(self._source.watch(), self._wait_s):
            self.apply(events)

    def apply(self, events: Iterable[Event]) -> None:
        fresh: list[Problem] = []
        with self._db.write_txn(self._problems) as wtxn:
            for event in events:
                if isinstance(event, Invalid):
                    rows = [_row(event.origin, problem) for problem in event.problems]
                    fresh += replace_problems(self._problems, wtxn, event.origin, rows, time.time())
                elif isinstance(event, Listed):
                    self._complete(wtxn)
        for problem in fresh:
            self._warn(problem)


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

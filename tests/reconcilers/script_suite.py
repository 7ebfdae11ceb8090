# SPDX-License-Identifier: Apache-2.0
"""What the scripts in testdata/reconcilers run against: a table, a target in memory, a reconciler.

Each script runs with a target that never fails, and with ones that fail at random.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import anyio.from_thread

from cilia.script.commands import Command, CommandLike, Output
from cilia.script.errors import CommandFailed
from cilia.script.runner import Suite
from cilia.script.state import State
from reconcilers import Config, Drift, Reconciler, new_drift_table
from statedb import DB, Column, Index, RWTable, new_table
from statedb.shown.commands import db_commands
from tests.reconcilers.targets import BatchTarget, Row, VerifiableTarget

COLUMNS = (
    Column("ID", lambda item: str(item.id)),
    Column("Value", lambda item: item.value),
    Column("Status", lambda item: item.status.kind.value.capitalize()),
    Column("Error", lambda item: item.status.error),
)
BY_ID = Index("id", lambda item: item.id, parse=int)


class FaultyTarget(BatchTarget, VerifiableTarget):
    """In batches, can be read back, refuses chosen objects and, at random, others."""


class Reconciling:
    """The application of a script; `recreate` begins with an empty table over the same target."""

    def __init__(self, flags: Sequence[str]) -> None:
        self._flags = list(flags)
        self.target = FaultyTarget()
        self.recreate(())

    def recreate(self, flags: Sequence[str]) -> None:
        options = dict(flag[2:].partition("=")[::2] for flag in (*self._flags, *flags))
        self.target.fault_rate = float(options.get("faults", 0))
        self.db = DB("reconciling")
        self.items: RWTable[Row] = new_table(self.db, "items", BY_ID, columns=COLUMNS, row_type=Row)
        self.drift: RWTable[Drift] = new_drift_table(self.db)
        self._listed: Any = None
        if "unlisted" in options:
            with self.db.write_txn(self.items) as wtxn:
                self._listed = self.items.register_initializer(wtxn, "list")
        self.health: dict[str, str] = {}
        self.reconciler = Reconciler(
            self.db,
            self.items,
            self.target,
            config=Config(
                round_size=int(options.get("round-size", 1000)),
                round_interval_s=0.0,
                retry_backoff_min_s=0.001,
                retry_backoff_max_s=0.01,
                refresh_interval_s=float(options.get("refresh", 0)),
                prune_interval_s=0.0,
            ),
            health=self._report,
            drift=self.drift,
            rng=random.Random(1),
        )
        self._task: Future[None] | None = None

    def _report(self, part: str, ok: bool, message: str) -> None:
        self.health[part] = f"{'OK' if ok else 'Degraded'}: {message}"

    def start(self, limit_s: float) -> None:
        self._portal_owner = anyio.from_thread.start_blocking_portal()
        self._portal = self._portal_owner.__enter__()
        self._task = self._portal.start_task_soon(self.reconciler.run)

    def stop(self, limit_s: float) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self._portal_owner.__exit__(None, None, None)

    def describe(self) -> str:
        return "items and a target\n"

    def commands(self) -> list[CommandLike]:
        return [
            *db_commands(self.db),
            Command("target/dump", "what the target holds", self._dump),
            Command("target/set", "change the target behind the table", self._set, "ID VALUE"),
            Command("target/unset", "the same by deletion", self._unset, "ID"),
            Command("target/refuse", "fail these objects", self._refuse, "ID..."),
            Command("target/accept", "fail none", self._accept),
            Command("target/largest-batch", "entries in the largest batch", self._largest),
            Command("reconciler/prune", "ask for a prune", self._prune),
            Command("reconciler/verify", "ask for a read-back", self._verify),
            Command("reconciler/attempted", "wait until all was attempted", self._attempted),
            Command("reconciler/settled", "wait until all succeeded", self._settled),
            Command("reconciler/listed", "the table is filled", self._list),
            Command("reconciler/health", "the last report", self._health),
        ]

    def _dump(self, state: State, flags: dict[str, Any], args: list[str]) -> Output:
        held = sorted(self.target.held.items())
        return Output("".join(f"{number}={value}\n" for number, value in held))

    def _set(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        self.target.held[int(args[0])] = args[1]

    def _unset(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        del self.target.held[int(args[0])]

    def _refuse(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        self.target.poison = self.target.poison_delete = set(map(int, args))

    def _accept(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        self._refuse(state, flags, [])

    def _largest(self, state: State, flags: dict[str, Any], args: list[str]) -> Output:
        return Output(f"{max(len(ids) for _, ids in self.target.batches)}\n")

    def _prune(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        self.reconciler.prune_now()

    def _verify(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        self.reconciler.verify_now()

    def _attempted(self, state: State, flags: dict[str, Any], args: list[str]) -> Output:
        return self._wait(state, settled=False)

    def _settled(self, state: State, flags: dict[str, Any], args: list[str]) -> Output:
        return self._wait(state, settled=True)

    def _wait(self, state: State, *, settled: bool) -> Output:
        revision = self.items.revision(self.db.read_txn())

        async def wait() -> bool:
            with anyio.fail_after(state.remaining_s()):
                mark = await self.reconciler.wait_until_reconciled(revision, settled=settled)
                return mark.settled(revision)

        return Output("settled\n" if self._portal.call(wait) else "failures wait for a retry\n")

    def _list(self, state: State, flags: dict[str, Any], args: list[str]) -> None:
        if self._listed is None:
            raise CommandFailed("the table has no initializer")
        with self.db.write_txn(self.items) as wtxn:
            self._listed(wtxn)

    def _health(self, state: State, flags: dict[str, Any], args: list[str]) -> Output:
        return Output(self.health.get("job-reconcile", "") + "\n")


SUITE = Suite(
    Reconciling,
    retry_interval_s=0.005,
    max_retry_interval_s=0.05,
    variants={
        "sound": ("--faults=0",),
        "faults-10": ("--faults=0.1",),
        "faults-50": ("--faults=0.5",),
    },
)

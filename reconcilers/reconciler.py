# SPDX-License-Identifier: Apache-2.0
"""The reconciler: makes a target follow a table, with retries, prune, refresh and verification.

    table --changes--> round (incremental.py) --operations--> target
      ^                  |            ^
      +---- status ------+            +-- retries (retries.py), by backoff

The loop runs rounds until the changes are used up, prunes and verifies when asked or due, then
sleeps until the table changes, somebody asks, or a retry is due. Follows cilium/statedb's
reconciler.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from reconcilers.config import Config
from reconcilers.incremental import Incremental
from reconcilers.metrics import Metrics, NoMetrics
from reconcilers.operations import Operations, VerifyOperations
from reconcilers.progress import Mark, Progress
from reconcilers.refresh import Refresher
from reconcilers.retries import Retries, text_of
from reconcilers.verify import Drift, Verifier
from statedb import DB, ChangeIterator, Channel, ReadTxn, RWTable, Status, WatchSet
from statedb.status import get_status, set_status

T = TypeVar("T")

Health = Callable[[str, bool, str], None]
"""Called with the part that reports (`job-reconcile`, `job-refresh`), whether it is well, and a
message; from the thread that runs the rounds."""

_ERRORS_SHOWN = 3


class _Cycle(NamedTuple):
    more: bool  # something is left: go on at once
    verify: ReadTxn | None = None  # read the target back first, in a worker thread
    watches: tuple[Channel, ...] = ()  # closed when there may be something to do
    due: float = math.inf  # when there is something to do without that


class _Request:
    """Something that is done when asked or when its interval is over; any thread may ask."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.wanted = False
        self.due = math.inf

    def done(self, now: float) -> None:
        self.wanted = False
        self.due = now + self._interval_s if self._interval_s > 0 else math.inf

    def failed(self, now: float, longest_s: float) -> None:
        """To be tried again as soon as it would have been due, and within a time."""
        self.wanted = False
        self.due = now + (min(self._interval_s, longest_s) if self._interval_s > 0 else longest_s)

    def ready(self, now: float) -> bool:
        return self.wanted or self.due <= now


class Reconciler(Generic[T]):
    """Reconciles `table` with the target of `operations`; one task calls `run`.

    `get_status` reads this reconciler's status in an object, `set_status` returns the object with
    another one: by default the field `status`. Whoever writes an object sets a fresh `pending()`:
    it is what asks for reconciliation. `run` may be called again after it ended by an error or by
    cancellation; nothing is lost between. With `drift` and operations that can verify, the target
    can be read back. `clock` is for intervals and backoff, in seconds. `weight` tells how many
    ordinary objects one costs as much as, where they differ: it counts for the size of a round.
    """

    def __init__(
        self,
        db: DB,
        table: RWTable[T],
        operations: Operations[T],
        *,
        get_status: Callable[[T], Status] = get_status,
        set_status: Callable[[T, Status], T] = set_status,
        config: Config | None = None,
        name: str | None = None,
        health: Health | None = None,
        metrics: Metrics | None = None,
        drift: RWTable[Drift] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        weight: Callable[[T], int] | None = None,
    ) -> None:
        """Raises: TypeError if `drift` is given and the operations cannot verify."""
        self.name = name or table.name
        self.config = config = config or Config()
        self.db = self._db = db
        self._table = table
        self._operations = operations
        self._health = health or (lambda part, ok, message: None)
        self._metrics: Metrics = metrics or NoMetrics()
        self._clock = clock
        self._retries: Retries[T] = Retries(
            config.retry_backoff_min_s, config.retry_backoff_max_s, config.retry_jitter, clock, rng
        )
        self._incremental = Incremental(
            db, table, operations, get_status, set_status, config, self._retries, weight
        )
        self._refresher = Refresher(
            db,
            table,
            get_status,
            set_status,
            config.refresh_interval_s,
            config.refresh_rate,
            time.time,
            self._report_refresh,
        )
        self._verifier: Verifier[T] | None = None
        if drift is not None:
            if not isinstance(operations, VerifyOperations):
                raise TypeError(f"{self.name}: {type(operations).__name__} cannot verify")
            self._verifier = Verifier(
                db, self.name, table, drift, operations, get_status, set_status
            )
        self._progress = Progress()
        self._prune = _Request(config.prune_interval_s)
        self._prune.wanted = True  # the first one, once the table is initialised
        self._retry_wanted = False
        self._was_filling = False  # the last cycle saw a table that was not initialised
        self._failures: dict[str, str] = {}  # of prune and verify, until they succeed
        self._verify = _Request(config.verify_interval_s)
        self._verify.done(clock())
        self._iterator: ChangeIterator[T] | None = None
        self._watch: Channel | None = None
        self._asked_lock = threading.Lock()
        self._asked = Channel()

    # -- for everyone, from any thread --

    def prune_now(self) -> None:
        """Ask for a full prune; it comes when the table is initialised and no change is left."""
        self._prune.wanted = True
        self._wake()

    def retry_now(self) -> None:
        """Ask for another attempt of all that failed: why they did may be over."""
        self._retry_wanted = True
        self._wake()

    def verify_now(self) -> None:
        """Ask for a read-back of the target. Raises: RuntimeError if it cannot be verified."""
        if self._verifier is None:
            raise RuntimeError(f"reconciler {self.name} has no table of drift to report to")
        self._verify.wanted = True
        self._wake()

    @property
    def progress(self) -> Mark:
        return self._progress.mark

    def retries(self, key: Any) -> bool:
        """Return True while the last attempt at the object with this primary key failed."""
        return key in self._retries

    async def wait_until_reconciled(self, revision: int, *, settled: bool = False) -> Mark:
        """Wait until every object up to `revision` was attempted.

        The mark that is returned tells whether some of them failed and are being retried;
        with `settled` the wait lasts until none of them is.
        """
        return await self._progress.wait(revision, settled=settled)

    # -- the loop --

    async def run(self) -> None:
        """Reconcile until cancelled. Raises: whatever is no failure of the target."""
        async with anyio.create_task_group() as tasks:
            if self.config.refresh_interval_s > 0:
                tasks.start_soon(self._refresher.run)
            await self._loop()

    def close(self) -> None:
        """Stop tracking deletes of the table; the reconciler cannot run again."""
        if self._iterator is not None:
            self._iterator.close()

    async def _loop(self) -> None:
        while True:
            started = self._clock()
            if self.config.in_thread:
                cycle = await anyio.to_thread.run_sync(self._cycle)
            else:
                cycle = self._cycle()
            if cycle.verify is not None:
                await anyio.to_thread.run_sync(self._run_verify, cycle.verify)
            if cycle.more:
                await anyio.lowlevel.checkpoint()
            else:
                await self._sleep(cycle)
                pause_s = started + self.config.round_interval_s - self._clock()
                await anyio.sleep(max(0.0, pause_s))

    async def _sleep(self, cycle: _Cycle) -> None:
        with anyio.move_on_after(max(0.0, cycle.due - self._clock())):
            await WatchSet(*cycle.watches).wait()

    def _wake(self) -> None:
        with self._asked_lock:
            asked, self._asked = self._asked, Channel()
        asked.close()

    def _cycle(self) -> _Cycle:
        """One round and, when the changes are used up, what else is due."""
        with self._asked_lock:
            asked = self._asked  # before looking at the requests, so that none is slept over
        txn = self._db.read_txn()
        if self._retry_wanted:
            self._retry_wanted = False
            self._retries.hasten()
        more = self._round(txn)
        if more:
            return _Cycle(True)
        initialized, init_watch = self._table.initialized_watch(txn)
        if initialized and self._was_filling:
            self._retries.hasten()  # for want of inputs they may have failed
        self._was_filling = not initialized
        now = self._clock()
        if initialized and self._prune.ready(now):
            if self._is_retry_due(now):
                return _Cycle(True)  # what is wanted goes before what is not
            self._run_prune(txn)
        if initialized and self._verifier is not None and self._verify.ready(now):
            if self.config.verify_in_thread:
                return _Cycle(True, txn)
            self._run_verify(txn)
        self._report(txn)
        watches = [asked]
        if self._watch is not None:
            watches.append(self._watch)
        if not initialized:
            watches.append(init_watch)
        return _Cycle(False, None, tuple(watches), self._next_due(initialized))

    def _is_retry_due(self, now: float) -> bool:
        due = self._retries.next_due()
        return due is not None and due <= now

    def _next_due(self, initialized: bool) -> float:
        retry = self._retries.next_due()
        due = math.inf if retry is None else retry
        return min(due, self._prune.due, self._verify.due) if initialized else due

    def _round(self, txn: ReadTxn) -> bool:
        started = time.perf_counter()
        changes, self._watch = self._changes().next(txn)
        result = self._incremental.run(txn, changes)
        elapsed_s = time.perf_counter() - started
        self._metrics.round_done(
            self.name, elapsed_s, result.updated, result.deleted, result.failed
        )
        reached = result.last_revision if result.more else self._table.revision(txn)
        self._progress.update(reached, self._retries.low_watermark())
        return result.more

    def _changes(self) -> ChangeIterator[T]:
        """The iterator over changes and deletes; what a round leaves comes again in the next."""
        if self._iterator is None:
            with self._db.write_txn(self._table) as wtxn:
                self._iterator = self._table.changes(wtxn)
        return self._iterator

    def _run_prune(self, txn: ReadTxn) -> None:
        started = time.perf_counter()
        try:
            self._operations.prune(txn, self._table.all(txn))
        except Exception as exc:  # noqa: BLE001  reported by health, and tried again
            self._failed("prune", self._prune, exc)
        else:
            self._succeeded("prune", self._prune)
        elapsed_s = time.perf_counter() - started
        self._metrics.prune_done(self.name, elapsed_s, "prune" not in self._failures)

    def _run_verify(self, txn: ReadTxn) -> None:
        """Read the target back; no round runs meanwhile, in whatever thread this is."""
        assert self._verifier is not None
        started = time.perf_counter()
        try:
            differences, foreign = self._verifier.run(txn)
        except Exception as exc:  # noqa: BLE001  as in _run_prune
            self._failed("verify", self._verify, exc)
            return
        self._succeeded("verify", self._verify)
        self._metrics.verify_done(self.name, time.perf_counter() - started, differences)
        if foreign:
            self._run_prune(txn)

    def _failed(self, what: str, request: _Request, failure: Exception) -> None:
        self._failures[what] = text_of(failure)
        request.failed(self._clock(), self.config.retry_backoff_max_s)

    def _succeeded(self, what: str, request: _Request) -> None:
        self._failures.pop(what, None)
        request.done(self._clock())

    # -- reports --

    def _report(self, txn: ReadTxn) -> None:
        retries = len(self._retries)
        self._metrics.waiting(self.name, retries)
        if not retries and not self._failures:
            self._health("job-reconcile", True, f"OK, {self._table.num_objects(txn)} object(s)")
            return
        first = islice(self._retries, _ERRORS_SHOWN)
        shown = [f"{_key_text(item.key)}: {item.error}" for item in first]
        if retries > len(shown):
            shown.append(f"and {retries - len(shown)} more")
        shown.extend(f"{what}: {text}" for what, text in self._failures.items())
        self._health("job-reconcile", False, "; ".join(shown))

    def _report_refresh(self, wait_s: float) -> None:
        self._health("job-refresh", True, f"Next refresh in {_duration(wait_s)}")


def _key_text(key: Any) -> str:
    return ":".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _duration(seconds: float) -> str:
    """Whole seconds in the notation 1h0m0s, 30m0s, 5s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"

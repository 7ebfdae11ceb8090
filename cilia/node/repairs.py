# SPDX-License-Identifier: Apache-2.0
"""Reconcilers of kernel objects, with watches that have them repair what others changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from cilia.node.wiring import Network
from cilia.program.parts import Context, Job
from reconcilers.config import Config
from reconcilers.kernel_watch import Concerns, KernelWatch, NamedArrivals
from reconcilers.operations import Operations
from reconcilers.reconciler import Reconciler
from statedb import DB, Index, RWTable, WriteTxn
from tables.node import devices

__all__ = ["Desired", "Repairs"]

T = TypeVar("T")

# Netlink blocks for as long as the kernel needs: rounds run in a thread. Events tell of drift; the
# read-back once a minute is for what an overrun or a bug of ours could hide.
CONFIG: Final = Config(in_thread=True, verify_interval_s=60.0)


@dataclass(frozen=True)
class Desired(Generic[T]):
    """A table of what the kernel is to have, and its reconciler."""

    table: RWTable[T]
    reconciler: Reconciler[T]
    _owners: Callable[[WriteTxn], None]

    def owners_known(self, db: DB) -> None:
        """Be called when every owner has written, or has registered an initializer of its own.

        Until then nothing in the kernel is taken away: what a former run left may still be wanted.
        """
        with db.write_txn(self.table) as wtxn:
            self._owners(wtxn)


@dataclass
class Repairs:
    """Makes reconcilers and their watches; the jobs are for the part of a feature."""

    ctx: Context
    network: Network
    jobs: dict[str, Job] = field(default_factory=dict)

    def reconcile(
        self, table: RWTable[T], operations: Operations[T], config: Config = CONFIG
    ) -> Desired[T]:
        """Make the reconciler of a table, whose owners say when all their rows are in it."""
        ctx = self.ctx
        with ctx.db.write_txn(table) as wtxn:
            owners = table.register_initializer(wtxn, "owners")
        reconciler = ctx.reconciler(table, operations, config=config)
        self.jobs[f"reconcile-{table.name}"] = reconciler.run
        return Desired(table, reconciler, owners)

    def watch(
        self, reconciler: Reconciler[Any], observed: RWTable[T], concerns: Concerns[T]
    ) -> None:
        """Have drift that shows in an observed table repaired at once."""
        watch = KernelWatch(self.ctx.db, observed, concerns, reconciler.verify_now)
        self.jobs[f"watch-{reconciler.name}"] = watch.run

    def retry_with_devices(self, table: RWTable[T], by_device: Index) -> None:
        """Have rows that failed tried again when their device comes."""
        arrivals = NamedArrivals(
            self.ctx.db, self.network.observed.devices, devices.names, table, by_device
        )
        self.jobs[f"retry-{table.name}"] = arrivals.run

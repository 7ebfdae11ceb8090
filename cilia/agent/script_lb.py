# SPDX-License-Identifier: Apache-2.0
"""Script commands on the load-balancer maps and their reconciler: `lb/*` and `test/bpfops-*`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from bpf.maps.lb import LBMaps
from bpf.maps.lb_dump import dump
from cilia.agent.wiring import Agent
from cilia.script import Command, CommandFailed, Output, State

__all__ = ["LBTarget", "LBTestTarget", "lb_commands", "lb_test_commands"]

Flags = dict[str, Any]
T = TypeVar("T")


class LBTarget(Protocol):
    """An agent and its maps, as commands in another thread need them."""

    @property
    def agent(self) -> Agent: ...

    @property
    def world(self) -> LBMaps:
        """The maps without the faults that tests put before them."""
        ...

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread of the agent's event loop."""
        ...


class LBTestTarget(LBTarget, Protocol):
    """One whose maps are nobody's."""

    def snapshot_maps(self) -> None: ...
    def restore_maps(self) -> None: ...


def lb_commands(app: LBTarget) -> tuple[Command, ...]:
    """What may also be asked of an agent at work."""

    def maps_dump(state: State, flags: Flags, args: list[str]) -> Output | None:
        text = dump(app.world)
        if not args:
            return Output(text)
        state.write_text(args[0], text)
        return None

    def maps_empty(state: State, flags: Flags, args: list[str]) -> None:
        text = dump(app.world)
        if text:
            raise CommandFailed(f"the maps are not empty:\n{text}")

    def prune(state: State, flags: Flags, args: list[str]) -> None:
        app.agent.frontend_reconciler.prune_now()

    def summary(state: State, flags: Flags, args: list[str]) -> Output:
        return Output(_summary_text(app))

    return (
        Command("lb/maps-dump", "print every map entry, sorted", maps_dump, "[FILE]"),
        Command("lb/maps-empty", "fail unless every map is empty", maps_empty),
        Command("lb/prune", "ask the reconciler to prune", prune),
        Command("test/bpfops-summary", "print the size of the reconciler's memory", summary),
    )


def lb_test_commands(app: LBTestTarget) -> tuple[Command, ...]:
    """What only tests may do: they write to the maps behind the reconciler's back."""

    def maps_snapshot(state: State, flags: Flags, args: list[str]) -> None:
        app.snapshot_maps()

    def maps_restore(state: State, flags: Flags, args: list[str]) -> None:
        app.restore_maps()

    def reset(state: State, flags: Flags, args: list[str]) -> None:
        app.call(app.agent.frontend_operations.restore)

    def state_empty(state: State, flags: Flags, args: list[str]) -> None:
        if any(app.agent.frontend_operations.summary().values()):
            raise CommandFailed(f"state is left:\n{_summary_text(app)}")

    return (
        Command("lb/maps-snapshot", "remember the content of all maps", maps_snapshot),
        Command("lb/maps-restore", "write the snapshot back", maps_restore),
        Command("test/bpfops-reset", "forget the reconciler's memory, read the maps", reset),
        Command("test/bpfops-state-empty", "fail unless that is all zero", state_empty),
    )


def _summary_text(app: LBTarget) -> str:
    summary = app.call(app.agent.frontend_operations.summary)
    return "".join(f"{name}: {size}\n" for name, size in summary.items())

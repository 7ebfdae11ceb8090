# SPDX-License-Identifier: Apache-2.0
"""Script commands on the load-balancer maps and their reconciler: `lb/*` and `test/bpfops-*`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bpf.maps.lb_dump import dump
from cilia.script import Command, CommandFailed, Output, State

if TYPE_CHECKING:
    from cilia.agent.script import ScriptApplication

__all__ = ["lb_commands"]

Flags = dict[str, Any]


def lb_commands(app: ScriptApplication) -> tuple[Command, ...]:
    """The commands over one application."""

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

    def maps_snapshot(state: State, flags: Flags, args: list[str]) -> None:
        app.snapshot_maps()

    def maps_restore(state: State, flags: Flags, args: list[str]) -> None:
        app.restore_maps()

    def prune(state: State, flags: Flags, args: list[str]) -> None:
        app.agent.frontend_reconciler.prune_now()

    def reset(state: State, flags: Flags, args: list[str]) -> None:
        app.call(app.agent.frontend_operations.restore)

    def summary(state: State, flags: Flags, args: list[str]) -> Output:
        return Output(_summary_text(app))

    def state_empty(state: State, flags: Flags, args: list[str]) -> None:
        if any(app.agent.frontend_operations.summary().values()):
            raise CommandFailed(f"state is left:\n{_summary_text(app)}")

    return (
        Command("lb/maps-dump", "print every map entry, sorted", maps_dump, "[FILE]"),
        Command("lb/maps-empty", "fail unless every map is empty", maps_empty),
        Command("lb/maps-snapshot", "remember the content of all maps", maps_snapshot),
        Command("lb/maps-restore", "write the snapshot back", maps_restore),
        Command("lb/prune", "ask the reconciler to prune", prune),
        Command("test/bpfops-reset", "forget the reconciler's memory, read the maps", reset),
        Command("test/bpfops-summary", "print the size of the reconciler's memory", summary),
        Command("test/bpfops-state-empty", "fail unless that is all zero", state_empty),
    )


def _summary_text(app: ScriptApplication) -> str:
    summary = app.call(app.agent.frontend_operations.summary)
    return "".join(f"{name}: {size}\n" for name, size in summary.items())

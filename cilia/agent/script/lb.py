# SPDX-License-Identifier: Apache-2.0
"""Script commands on the load-balancer maps and their reconciler: `lb/*` and `test/bpfops-*`."""

from __future__ import annotations

from bpf.maps.lb_dump import dump, dump_scale_to_zero
from cilia.agent.script.target import Flags, ScriptTarget, Target
from cilia.agent.wiring import Agent
from cilia.script.commands import Command, Flag, Output
from cilia.script.errors import CommandFailed
from cilia.script.state import State
from statedb import StatusKind
from statedb.status import refreshing, set_status
from tables.addressing import L3n4Addr, ServiceName

__all__ = ["lb_commands", "lb_test_commands"]


def lb_commands(app: Target) -> tuple[Command, ...]:
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

    def scale_to_zero(state: State, flags: Flags, args: list[str]) -> Output | None:
        text = dump_scale_to_zero(app.world)
        if not args:
            return Output(text)
        state.write_text(args[0], text)
        return None

    def prune(state: State, flags: Flags, args: list[str]) -> None:
        app.agent.loadbalancer.reconciler.prune_now()

    def summary(state: State, flags: Flags, args: list[str]) -> Output:
        return Output(_summary_text(app))

    return (
        Command("lb/maps-dump", "print every map entry, sorted", maps_dump, "[FILE]"),
        Command("lb/maps-empty", "fail unless every map is empty", maps_empty),
        Command("lb/scale-to-zero-dump", "print which wake up by traffic", scale_to_zero, "[FILE]"),
        Command("lb/prune", "ask the reconciler to prune", prune),
        Command("test/bpfops-summary", "print the size of the reconciler's memory", summary),
    )


def lb_test_commands(app: ScriptTarget) -> tuple[Command, ...]:
    """What only tests may do: they write to the maps behind the reconciler's back."""

    def maps_snapshot(state: State, flags: Flags, args: list[str]) -> None:
        app.snapshot_maps()

    def maps_restore(state: State, flags: Flags, args: list[str]) -> None:
        app.restore_maps(any_protocol=flags["any-proto"])

    def reset(state: State, flags: Flags, args: list[str]) -> None:
        """As a restart does: every row is applied again, by ids that the maps have."""
        app.call(lambda: _forget(app.agent))

    def state_empty(state: State, flags: Flags, args: list[str]) -> None:
        if any(app.agent.loadbalancer.operations.summary().values()):
            raise CommandFailed(f"state is left:\n{_summary_text(app)}")

    return (
        Command("lb/maps-snapshot", "remember the content of all maps", maps_snapshot),
        Command(
            "lb/maps-restore",
            "write the snapshot back",
            maps_restore,
            flags=(Flag("any-proto", help="with protocol ANY for services and backends"),),
        ),
        Command("test/bpfops-reset", "forget the reconciler's memory, read the maps", reset),
        Command("test/bpfops-state-empty", "fail unless that is all zero", state_empty),
        *_told_commands(app),
    )


def _told_commands(app: ScriptTarget) -> tuple[Command, ...]:
    """What others would tell the agent: health checkers, the node's object."""

    def backend_health(state: State, flags: Flags, args: list[str]) -> None:
        if len(args) != 3 or args[2] not in ("true", "false"):
            raise CommandFailed("expected NAMESPACE/NAME ADDRESS true|false")
        writer, name = app.agent.loadbalancer.writer, ServiceName.parse(args[0])
        with writer.write_txn() as wtxn:
            writer.set_backend_health(
                wtxn, name, L3n4Addr.parse(args[1]), healthy=args[2] == "true"
            )

    def health_checked(state: State, flags: Flags, args: list[str]) -> None:
        if len(args) != 1:
            raise CommandFailed("expected ANNOTATION")
        writer, annotation = app.agent.loadbalancer.writer, args[0]
        writer.set_health_checked(lambda svc: annotation in svc.annotations)

    def node_labels(state: State, flags: Flags, args: list[str]) -> None:
        if not all("=" in arg for arg in args):
            raise CommandFailed("expected KEY=VALUE...")
        app.set_node(labels=dict(arg.split("=", 1) for arg in args))

    def node_ip(state: State, flags: Flags, args: list[str]) -> None:
        if len(args) != 1:
            raise CommandFailed("expected IP")
        app.set_node(ip=args[0])

    def init_wait(state: State, flags: Flags, args: list[str]) -> None:
        db, lb = app.agent.ctx.db, app.agent.loadbalancer.tables
        for table in (lb.services, lb.frontends, lb.backends):
            done, channel = table.initialized_watch(db.read_txn())
            if not done and not channel.wait_sync(max(state.remaining_s(), 0)):
                missing = ", ".join(table.pending_initializers(db.read_txn()))
                raise CommandFailed(f"{table.name} still waits for {missing}")

    return (
        Command(
            "test/update-backend-health",
            "say that a backend of a service is healthy or not",
            backend_health,
            "NAMESPACE/NAME ADDRESS true|false",
        ),
        Command(
            "test/set-is-service-healthchecked",
            "services with this annotation count as health-checked",
            health_checked,
            "ANNOTATION",
        ),
        Command("test/set-node-labels", "replace the node's labels", node_labels, "KEY=VALUE..."),
        Command("test/set-node-ip", "set the node's internal address", node_ip, "IP"),
        Command("test/init-wait", "wait until the tables are initialized", init_wait),
    )


def _forget(agent: Agent) -> None:
    agent.loadbalancer.operations.restore()
    table, status = agent.loadbalancer.tables.frontends, refreshing()
    with agent.ctx.db.write_txn(table) as wtxn:
        for fe in list(table.all(wtxn)):
            if fe.status.kind is StatusKind.DONE:
                table.insert(wtxn, set_status(fe, status))


def _summary_text(app: Target) -> str:
    summary = app.call(app.agent.loadbalancer.operations.summary)
    return "".join(f"{name}: {size}\n" for name, size in summary.items())

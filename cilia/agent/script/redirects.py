# SPDX-License-Identifier: Apache-2.0
"""Script commands on local redirect policies: `lrp/list`, `skiplbmap`, `localnode/update`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bpf.maps.redirect_skips import dump
from cilia.agent.script.target import Flags, ScriptTarget, Target
from cilia.agent.wiring import Agent
from cilia.loadbalancer.redirects.controller import wants
from cilia.script.commands import Command, Output
from cilia.script.errors import CommandFailed
from cilia.script.state import State
from statedb import ReadTxn
from tables.addressing import L3n4Addr
from tables.cluster.pods import pod_key
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import SERVICE, params_of
from tables.loadbalancer.redirect_policies import RedirectPolicy

__all__ = ["redirect_commands", "redirect_test_commands"]


def redirect_commands(app: Target) -> tuple[Command, ...]:
    """What may also be asked of an agent at work."""

    def list_(state: State, flags: Flags, args: list[str]) -> Output | None:
        return _deliver(state, args, policies_text(app.agent))

    def skip_map(state: State, flags: Flags, args: list[str]) -> Output | None:
        if app.skip is None:
            raise CommandFailed("this datapath has no such maps")
        return _deliver(state, args, dump(app.skip))

    return (
        Command("lrp/list", "print redirect policies with frontends and backends", list_, "[FILE]"),
        Command("skiplbmap", "print whom redirection spares", skip_map, "[FILE]"),
    )


def redirect_test_commands(app: ScriptTarget) -> tuple[Command, ...]:
    def update(state: State, flags: Flags, args: list[str]) -> None:
        if not args or not all("=" in arg for arg in args):
            raise CommandFailed("expected KEY=VALUE...")
        app.merge_node_labels(dict(arg.split("=", 1) for arg in args))

    return (Command("localnode/update", "add labels to the node", update, "KEY=VALUE..."),)


def _deliver(state: State, args: list[str], text: str) -> Output | None:
    if not args:
        return Output(text)
    state.write_text(args[0], text)
    return None


def policies_text(agent: Agent) -> str:
    """A line a policy, and below it one for each frontend that it redirects or would."""
    txn = agent.ctx.db.read_txn()
    pods = {str(ip): pod_key(pod) for pod in agent.cluster.pods.all(txn) for ip in pod.ips}
    lines: list[str] = []
    for policy in agent.loadbalancer.redirects.policies.all(txn):
        lines.append(
            f"{policy.name} type={'svc' if policy.service else 'addr'} "
            f'frontend-type="{policy.match.description}" service={policy.service or ""}'
        )
        lines += [
            f"  {_shown(address)} => {_backends(backends, pods)}"
            for address, backends in _frontends(agent, txn, policy)
        ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _frontends(
    agent: Agent, txn: ReadTxn, policy: RedirectPolicy
) -> Iterator[tuple[L3n4Addr, tuple[Backend, ...]]]:
    table, redirect = agent.loadbalancer.tables.frontends, policy.redirect_service
    if policy.service is not None:
        for fe in table.list(txn, policy.service, SERVICE):
            if wants(policy, params_of(fe)):
                yield fe.address, fe.backends if fe.redirect_to == redirect else ()
        return
    for wanted in policy.frontends:
        own = table.get(txn, wanted.address)
        is_ours = own is not None and own.service_name == redirect
        yield wanted.address, own.backends if own is not None and is_ours else ()


def _backends(backends: tuple[Backend, ...], pods: Mapping[str, str]) -> str:
    shown = (
        f"{_shown(be.address)} ({pods.get(str(be.address.ip), 'unknown')}, {be.state.label})"
        for be in backends
    )
    return ", ".join(shown) or "(no backends)"


def _shown(address: L3n4Addr) -> str:
    """Without brackets around IPv6, as the field prints it here."""
    return f"{address.ip}:{address.port}/{address.protocol}"

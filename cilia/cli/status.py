# SPDX-License-Identifier: Apache-2.0
"""`cilia status`: one screen that says whether the agent is well and everything is in force."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from cilia.api.client import ApiError, request
from cilia.loadbalancer.cli.replacement import REPLACEMENT
from cilia.loadbalancer.cli.sockets import SOCKETS
from cilia.program.output import show
from statedb.shown.text import all_visible, visible

OK, WARN, BAD = "green", "yellow", "red"
NEARLY_FULL = 0.8  # part of a map from which on an operator has to act


LOOK_S = 0.2  # nobody pushes the status


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.option("--cluster", is_flag=True, help="The installation on a cluster, not this node.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --cluster; default: $KUBECONFIG or ~/.kube/config.",
)
@click.option("-n", "--namespace", default="kube-system", help="With --cluster: where it is.")
@click.option("--wait", is_flag=True, help="Until all is well.")
@click.option("--wait-duration", type=int, default=300, show_default=True, metavar="SECONDS")
@click.pass_context
def status(
    ctx: click.Context,
    output: str,
    cluster: bool,
    kubeconfig: Path | None,
    namespace: str,
    wait: bool,
    wait_duration: int,
) -> None:
    """Is the agent well, and is everything in force?

    Ends with 0 if so, with 1 if something is degraded, refused or not yet synchronised.

    \b
    Examples:
      cilia status
      cilia status -o json | jq .problems
      cilia status --wait
      cilia status --cluster --wait
    """
    wait_s = wait_duration if wait else 0
    if cluster or kubeconfig:
        from cilia.cli.install.status import cluster_status  # with all of a client's libraries

        rollout = cluster_status(kubeconfig, namespace, wait_s)
        show(rollout.as_dict(), output, _text(map(visible, rollout.lines())))
        ctx.exit(0 if rollout.complete() else 1)
    answer = _answer(ctx.obj["socket"], wait_s)
    show(answer, output, _text(lines(all_visible(answer))))
    ctx.exit(0 if answer["healthy"] else 1)


def _answer(socket: str, wait_s: float) -> dict[str, Any]:
    """What the agent says, at the latest after `wait_s`, while it is not well or not there.

    Raises:
        click.ClickException: there is no agent.
    """
    until = time.monotonic() + wait_s
    while True:
        late = time.monotonic() >= until
        try:
            answer: dict[str, Any] = request(socket, "/status")
            if answer["healthy"] or late:
                return answer
        except ApiError as error:
            if late:
                raise click.ClickException(_hidden_agent(Path(socket)) or str(error)) from None
        time.sleep(LOOK_S)


def _hidden_agent(socket: Path) -> str:
    """Say that an agent runs though its socket is gone; empty if none does, or it is there."""
    from cilia.linux.lock import holder_of  # its package has all of netlink

    try:
        pid = None if socket.exists() else holder_of(socket.parent)
    except OSError:
        return ""
    if not pid:
        return ""
    return (
        f"an agent runs (pid {pid}), and its socket {socket} is gone: it makes it anew, or says in"
        " its log why it cannot"
    )


def _text(shown: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in shown)


def lines(answer: dict[str, Any]) -> Iterator[str]:
    """The answer as text for a terminal; click drops the colours where there is none."""
    word = click.style("OK", fg=OK) if answer["healthy"] else click.style("Degraded", fg=BAD)
    age = _age(answer["uptime_s"])
    datapath = answer["datapath"]
    yield f"Agent:       {word}  {answer['version']}, pid {answer['pid']}, up {age}"
    yield f"Instance:    {answer['instance']} ({answer['instance_id']})"
    yield f"Source:      {answer['source']}, {_synchronised(answer)}"
    yield f"Datapath:    {datapath['mode']}, {_programs(datapath['links'])}"
    if datapath["links"]:
        yield f"Sockets:     {SOCKETS[datapath['sockets']]}"
    yield f"New flows:   {REPLACEMENT[answer['replacement']]}"
    yield f"Frontends:   {_frontends(answer['frontends'])}"
    if "pod_network" in answer:
        yield from _pod_network(answer["pod_network"], answer.get("masquerade"))
    yield from _section("Watches", [_watch_line(row) for row in answer["watches"]])
    yield from _section("Maps", [_map_line(row) for row in datapath["maps"]])
    yield from _section("Tables", [_table_line(row) for row in answer["tables"]])
    yield from _section("Others", [*_other_lines(answer["others"])])
    yield from _section("Degraded", [_health_line(row) for row in answer["degraded"]])
    yield from _section("Problems", [_problem_line(row) for row in answer["problems"]])


def _pod_network(pods: dict[str, Any], masquerade: dict[str, Any] | None) -> Iterator[str]:
    states = ", ".join(f"{count} {state}" for state, count in sorted(pods["endpoints"].items()))
    is_external = pods["ipam"]["mode"] == "external"
    routing = "by another plugin" if is_external else pods["routing"]
    yield f"Endpoints:   {states or 'none yet'}, routing {routing}"
    if (chaining := pods.get("chaining", "none")) != "none":  # an older agent says nothing of it
        yield f"Chaining:    {chaining}"
    if ignored := pods["ignored_annotations"]:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(ignored.items()))
        yield f"Annotations: not in force: {click.style(names, fg=WARN)}"
    ipam = pods["ipam"]
    pools = ", ".join(map(_pool, ipam["pools"]))
    refused = [click.style(said, fg=BAD) for said in ipam["refused"]]
    none = click.style("no prefix for pods yet", fg=WARN)
    if is_external:
        network = ipam["network"]
        none = f"by the plugin of network {network}" if network else "by another plugin"
    yield f"IPAM:        {ipam['mode']}, {'; '.join(refused) or pools or none}"
    yield f"Masquerade:  {_masquerade(masquerade)}"


def _pool(pool: dict[str, Any]) -> str:
    taken = pool["in_use"] + pool["quarantined"]
    text = f"{pool['prefix']} {pool['in_use']} of {_count(pool['size'])} in use"
    if pool["quarantined"]:
        text += f" and {pool['quarantined']} in quarantine"
    return click.style(text, fg=WARN) if taken >= NEARLY_FULL * pool["size"] else text


def _count(number: int) -> str:
    """A number; those of IPv6 as a power of two."""
    return str(number) if number < 1 << 20 else f"2^{round(math.log2(number))}"


def _masquerade(masquerade: dict[str, Any] | None) -> str:
    families = [
        family
        for key, family in (("ipv4", "IPv4"), ("ipv6", "IPv6"))
        if (masquerade or {}).get(key)
    ]
    if masquerade is None or not families:
        return "off: what pods send to the world keeps its source"
    text = f"{' and '.join(families)} by programs of devices"
    first = masquerade["first"]
    more = masquerade["exclusions"] - len(first)
    if first:
        text += f", but not to {', '.join(first)}" + (f" and {more} more" if more else "")
    return text


def _section(title: str, rows: list[str]) -> Iterator[str]:
    if rows:
        yield f"{title}:"
        yield from (f"  {row}" for row in rows)


def _synchronised(answer: dict[str, Any]) -> str:
    if answer["synchronised"]:
        return "synchronised"
    said = "not yet synchronised"
    if any(row["pending"] for row in answer["tables"]):
        said += ": nothing is removed from the kernel before all inputs are read"
    return click.style(said, fg=BAD)


def _frontends(counts: dict[str, int]) -> str:
    text = f"{counts['done']} done, {counts['pending']} pending, "
    text += click.style(f"{counts['error']} error", fg=BAD if counts["error"] else None)
    refused = counts["refused"]
    return text + (", " + click.style(f"{refused} refused", fg=BAD) if refused else "")


def _programs(links: list[dict[str, Any]]) -> str:
    at = Counter(row["at"] for row in links)
    return f"{at['cgroup']} programs attached to the cgroup, {at['device']} to devices"


def _map_line(row: dict[str, Any]) -> str:
    used = row["entries"] / row["max_entries"]
    full = used >= NEARLY_FULL
    share = click.style(f"{used:6.1%}", fg=BAD if full else None)
    line = f"{row['name']:<16} {share}  {row['entries']} of {row['max_entries']}"
    return line + click.style("  nearly full", fg=BAD) if full else line


def _watch_line(row: dict[str, Any]) -> str:
    """How old the last proof is that what was told is what the API server has; files need none."""
    age_s = row["proof_age_s"]
    proven = "not listed yet"
    if age_s is not None:
        proven = f"proven {_age(age_s)} ago"
    elif row["listed"]:
        proven = "listed"
    state = click.style(row["state"], fg=BAD if row["error"] else None)
    text = f"{row['resource']:<20} {row['objects']:>8} objects  {state}, {proven}"
    repairs = f", {row['repairs']} repaired" if row["repairs"] else ""
    return f"{text}{repairs}{': ' + row['error'] if row['error'] else ''}"


def _table_line(row: dict[str, Any]) -> str:
    waiting = f"  waits for {', '.join(row['pending'])}" if row["pending"] else ""
    counts = f"{row['objects']:>8} objects  revision {row['revision']:<8}"
    return f"{row['name']:<20} {counts} {_size(row)}{waiting}"


def _size(row: dict[str, Any]) -> str:
    """The estimated size beside the budget; a table over its budget stands out."""
    used, budget = row["bytes"], row["budget_bytes"]
    if budget is None:
        return _bytes(used)
    over = used > budget
    text = f"{_bytes(used)} of {_bytes(budget)}{', over its budget' if over else ''}"
    return click.style(text, fg=BAD if over else None)


def _bytes(size: float) -> str:
    units = ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    digits = 0 if units[0] == "B" or size >= 100 else 1
    return f"{size:.{digits}f} {units[0]}"


def _other_lines(others: dict[str, Any]) -> Iterator[str]:
    """Who else is on our hooks or serves our addresses; nothing is done to them."""
    for row in others["programs"]:
        yield f"program {row['name'] or '(unnamed)'}, id {row['id']}, at {row['at']} {row['hook']}"
    for row in others["kube_proxy"]:
        text = f"kube-proxy's rules ({row['mode']}, {row['place']}): {row['addresses']} addresses"
        if row["served"]:
            more = " …" if row["served"] > len(row["examples"]) else ""
            text += f", {row['served']} of them served here ({', '.join(row['examples'])}{more})"
        yield click.style(text, fg=WARN if row["served"] else None)
    if others["error"]:
        yield click.style(f"there may be more: {others['error']}", fg=WARN)


def _health_line(row: dict[str, Any]) -> str:
    return click.style(f"{row['component']}: {row['message']} {row['error']}".rstrip(), fg=BAD)


def _problem_line(row: dict[str, Any]) -> str:
    where = f"{row['file']}#{row['document']}" if row["file"] else ""
    parts = [where, row["object"], row["field"], row["message"]]
    return click.style(": ".join(part for part in parts if part), fg=BAD)


def _age(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole}s"
    return f"{whole // 60}m" if whole < 7200 else f"{whole // 3600}h"

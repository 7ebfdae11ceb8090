# SPDX-License-Identifier: Apache-2.0
"""All that a node has of its pods when cilia is their network: what a pod that is gone has left."""

from __future__ import annotations

from typing import Any, Final

from bpf.maps.map import Map

from .agent import Agent

#: Tables with rows for each pod, and the column that names them.
TABLES: Final = {
    "endpoints": "Pod",
    "attachments": "target",
    "desired-routes": "Prefix",
    "ip-allocations": "IP",
    "desired-identities": "Labels",
    "desired-k8s-endpoints": "Pod",
}
PLACES: Final = ("/run/cilia", "/run/netns", "/run/node/cni")


def state_of(agent: Agent) -> dict[str, Any]:
    """Return it by where it was looked for; addresses that rest are left out."""
    node = agent.machine
    shown = {
        words: sorted(node.run("ip", *words.split()).splitlines())
        for words in (
            *("-brief link", "-brief address", "rule", "-6 rule"),
            *("-4 route show table all", "-6 route show table all"),
        )
    }
    files = node.run("find", *PLACES, "-not", "-path", "*/log*").splitlines()
    return {**shown, "files": sorted(files), **_rows(agent), "entries": _entries(agent)}


def _rows(agent: Agent) -> dict[str, list[str]]:
    found = {}
    for table, column in TABLES.items():
        rows = agent.rows(table)
        found[table] = sorted(str(row[column]) for row in rows if row.get("State") != "quarantined")
    return found


def _entries(agent: Agent) -> int:
    path = agent.machine.path("/sys/fs/bpf/cilia/maps/cilia_endpoints")
    with Map.open_pinned(path) as opened:
        return sum(1 for _ in opened.items())


def difference(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what differs, by place: lines that are there more (+) or no more (-)."""
    found: dict[str, Any] = {}
    for place, lines in before.items():
        if lines == now[place]:
            continue
        if not isinstance(lines, list):
            found[place] = f"{lines} -> {now[place]}"
            continue
        found[place] = [f"+ {line}" for line in now[place] if line not in lines]
        found[place] += [f"- {line}" for line in lines if line not in now[place]]
    return found

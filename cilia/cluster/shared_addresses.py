# SPDX-License-Identifier: Apache-2.0
"""Addresses that two Node objects have, as problems: k8s-nodes -> problems.

Nothing tells which of the nodes is meant where objects name a node by its address, so pods of both
are unknown to the others (`sole_addresses` in cilia/node/own_addresses.py).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from statedb import DB, Channel, RWTable, Table
from tables.addressing import IP
from tables.cluster.nodes import Node
from tables.problems import Problem, replace_problems

__all__ = ["SharedAddresses"]

_ORIGIN: Final = "node-addresses"


class SharedAddresses:
    """One task calls `run`. Owns the problems of its origin."""

    def __init__(self, db: DB, nodes: Table[Node], problems: RWTable[Problem]) -> None:
        self._db = db
        self._nodes = nodes
        self._problems = problems
        self._told: list[Problem] = []

    async def run(self) -> None:
        """Follow the table for ever."""
        while True:
            await self._step().wait()

    def _step(self) -> Channel:
        """Write what differs; return what closes with the next change of a node."""
        nodes, changed = self._nodes.all_watch(self._db.read_txn())
        found = sorted(_shared(nodes), key=str)
        if found != self._told:
            with self._db.write_txn(self._problems) as wtxn:
                replace_problems(self._problems, wtxn, _ORIGIN, found, time.time())
            self._told = found
        return changed


def _shared(nodes: Iterable[Node]) -> Iterator[Problem]:
    holders: dict[IP, dict[str, None]] = defaultdict(dict)
    for node in nodes:
        for ip in (*node.internal_ips, *node.external_ips):
            holders[ip][node.name] = None
    for ip, names in holders.items():
        for name in names if len(names) > 1 else ():
            others = ", ".join(sorted(set(names) - {name}))
            message = (
                f"{ip} is also an address of {others}: pods of these nodes may not reach"
                " each other, give each node its own"
            )
            yield Problem(_ORIGIN, message, kind="Node", name=name, field="status.addresses")

# SPDX-License-Identifier: Apache-2.0
"""The object of this node over a restart.

Its labels decide over zones and its addresses over node ports. What was in force by them stays so
while the object cannot be read at a start: the row of before is in ``k8s-nodes`` until a whole list
says otherwise. A row that goes takes the file along.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec
import structlog

from cilia.linux.records import read_record, set_aside, write_record
from statedb import DB, Table
from tables.addressing import IP
from tables.cluster.nodes import Node

__all__ = ["OWN_NODE_FILE", "OwnNodeFile"]

log = structlog.get_logger("cluster")

#: In the state directory.
OWN_NODE_FILE: Final = "own-node.json"


class Record(msgspec.Struct, frozen=True):
    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    internal_ips: list[str]
    external_ips: list[str]
    pod_cidrs: list[str]


class OwnNodeFile:
    """The row of the node of this name, in a file."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    def read(self) -> Node | None:
        """Return the row of before; None if there is none that can be read."""
        try:
            found = read_record(self._path, Record)
        except OSError as error:
            log.error("the node of before is not known", path=str(self._path), error=str(error))
            return None
        if found is None or found.name != self._name:
            return None
        try:
            internal = tuple(map(IP.parse, found.internal_ips))
            external = tuple(map(IP.parse, found.external_ips))
        except ValueError as error:
            set_aside(self._path, str(error))
            return None
        cidrs = tuple(found.pod_cidrs)
        return Node(found.name, found.labels, found.annotations, internal, external, cidrs)

    async def follow(self, db: DB, nodes: Table[Node]) -> None:
        """Keep the file as the row is, for ever. Raises: OSError; another run writes it."""
        written = await anyio.to_thread.run_sync(self.read)
        while True:
            row, changed = db.look(partial(nodes.get_watch, key=self._name))
            if row is not None and row != written:
                await anyio.to_thread.run_sync(partial(write_record, self._path, _record(row)))
            elif row is None and written is not None:
                await anyio.to_thread.run_sync(partial(self._path.unlink, missing_ok=True))
            written = row
            await changed.wait()


def _record(row: Node) -> Record:
    return Record(
        row.name,
        dict(row.labels),
        dict(row.annotations),
        list(map(str, row.internal_ips)),
        list(map(str, row.external_ips)),
        list(row.pod_cidrs),
    )

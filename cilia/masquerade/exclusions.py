# SPDX-License-Identifier: Apache-2.0
"""Who knows the way back to this node's pods, as ``masquerade-exclusions``.

::

    options              --ipv4-native-routing-cidr, --ipv6-native-routing-cidr
    Node objects         pods' prefixes, of the families that no option names
    file                 ip-masq-agent's list, if it is asked for

Nodes themselves are not among them: programs know their addresses (``cluster-nodes``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cilia.masquerade.ip_masq_agent import IPMasqAgentFile
from cilia.masquerade.options import MasqueradeOptions
from statedb import DB, Channel, ReadTxn, RWTable, Table, WatchSet
from tables.addressing import Prefix
from tables.cluster.nodes import Node
from tables.masquerade.exclusions import MasqueradeExclusion

__all__ = ["ExclusionsController"]

INITIALIZER: Final = "exclusions"
#: Nodes of a large cluster are listed one after the other.
SETTLE_S: Final = 0.005


class ExclusionsController:
    """One task calls `run`. Owns all of ``masquerade-exclusions``."""

    def __init__(
        self,
        db: DB,
        nodes: Table[Node],
        exclusions: RWTable[MasqueradeExclusion],
        options: MasqueradeOptions,
        file: IPMasqAgentFile | None = None,
    ) -> None:
        self._db = db
        self._nodes = nodes
        self._table = exclusions
        self._options = options
        self._file = file
        # Closed when what the Node objects say is written.
        self.listed = Channel()
        with db.write_txn(exclusions) as wtxn:
            self._complete = exclusions.register_initializer(wtxn, INITIALIZER)

    async def run(self) -> None:
        """Follow Node objects and file for ever."""
        while True:
            await self._db.look(self._step).wait(settle_s=SETTLE_S)

    def _step(self, txn: ReadTxn) -> WatchSet:
        """Write what differs; return what closes when there may be more to do.

        As long as Node objects or file are not known, nothing of the run before is removed.
        """
        nodes, changed = self._nodes.all_watch(txn)
        listed, became_listed = self._nodes.initialized_watch(txn)
        watches = WatchSet(changed, became_listed)
        of_file: tuple[Prefix, ...] | None = ()
        if self._file is not None:
            of_file, file_changed = self._file.prefixes_watch()
            watches.add(file_changed)
        wanted = self._wanted(nodes, of_file or ())
        known = listed and of_file is not None
        with self._db.write_txn(self._table) as wtxn:
            for old in list(self._table.all(wtxn)):
                if old.prefix not in wanted and known:
                    self._table.delete(wtxn, old)
            for prefix, reason in wanted.items():
                found = self._table.get(wtxn, prefix)
                if found is None or found.reason != reason:
                    self._table.insert(wtxn, MasqueradeExclusion(prefix, reason))
            if known:
                self._complete(wtxn)
        if listed:
            self.listed.close()
            watches.discard(became_listed)
        return watches

    def _wanted(self, nodes: Iterable[Node], of_file: Iterable[Prefix]) -> dict[Prefix, str]:
        """Return the reason of each prefix, of the families that are masqueraded."""
        found: dict[Prefix, str] = {}
        native = self._options.native_routing_prefixes
        for v6, prefix in native.items():
            found[prefix] = f"--ipv{6 if v6 else 4}-native-routing-cidr"
        for prefix in self._options.static_pools:
            found.setdefault(prefix, "pods of this node")
        for node in sorted(nodes, key=lambda node: node.name):
            for prefix in node.pod_prefixes:
                if prefix.is_ipv6 not in native:
                    found.setdefault(prefix, f"pods of node {node.name}")
        for prefix in of_file:
            found.setdefault(prefix, "ip-masq-agent")
        families = self._options.masqueraded
        return {prefix: why for prefix, why in found.items() if prefix.is_ipv6 in families}

# SPDX-License-Identifier: Apache-2.0
"""The addresses of the cluster's API servers to claims: backends of the Service `kubernetes`.

An API server on this node stays `host`, and one in a pod of this node the pod: what is local is
known better. Any other, on a node or outside of the cluster, is `kube-apiserver`.
"""

from __future__ import annotations

from typing import Final

from cilia.identity.ipcache.claims import KUBE_APISERVER, host_prefix
from cilia.identity.ipcache.follower import Known
from cilia.identity.ipcache.writer import Claims, IPCacheWriter
from statedb import DB, ReadTxn, Table, WatchSet
from tables.addressing import Prefix, ServiceName
from tables.identity.ipcache import Claim
from tables.loadbalancer.backends import SERVICE, Backend
from tables.sources import Source

__all__ = ["ApiServersController"]

KUBERNETES: Final = ServiceName("default/kubernetes")
OWNER: Final = "service default/kubernetes"
INITIALIZER: Final = "api-servers"


class ApiServersController:
    """One task calls `run`. There are a few addresses: they are looked at together."""

    def __init__(
        self,
        db: DB,
        backends: Table[Backend],
        writer: IPCacheWriter,
        local: frozenset[str],
        families: frozenset[bool],
    ) -> None:
        """`local`: the initializers of ``ipcache`` that tell what is this node's."""
        self._db = db
        self._backends = backends
        self._writer = writer
        self._local = local
        self._families = families
        self._known = Known(db, writer.table, backends, INITIALIZER)
        # A cache of ``ipcache``.
        self._held: Claims = {}

    async def run(self) -> None:
        """Follow the tables for ever."""
        while True:
            await self._db.look(self.step).wait()

    def step(self, txn: ReadTxn) -> WatchSet:
        """Write what differs; return what closes when there may be more to do."""
        table = self._writer.table
        backends, changed = self._backends.list_watch(txn, KUBERNETES, SERVICE)
        watches = WatchSet(changed, self._backends.filled_watch(txn)[1], table.filled_watch(txn)[1])
        ips = sorted({be.address.ip for be in backends if be.source is Source.K8S})
        wanted = {
            host_prefix(ip): self._claim(txn, host_prefix(ip), watches)
            for ip in ips
            if ip.is_ipv6 in self._families
        }
        local_known = not self._local.intersection(table.pending_initializers(txn))
        mark = self._known.mark(txn) if local_known else None
        if wanted != self._held or mark is not None:
            with self._db.write_txn(table) as wtxn:
                self._writer.exchange(wtxn, [(self._held, wanted)])
                if mark is not None:
                    mark(wtxn)
            self._held = wanted
        return watches

    def _claim(self, txn: ReadTxn, prefix: Prefix, watches: WatchSet) -> Claim:
        row, changed = self._writer.table.get_watch(txn, (0, prefix))
        watches.add(changed)
        local = [c for c in row.claims if c.source is Source.LOCAL] if row is not None else []
        identity = local[0].identity if local else KUBE_APISERVER
        return Claim(source=Source.KUBE_APISERVER, owner=OWNER, identity=identity)

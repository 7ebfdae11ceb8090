# SPDX-License-Identifier: Apache-2.0
"""The network namespaces of this node's pods into ``pod-namespaces``, found by the pods' addresses.

Whoever makes a pod's namespace need not say so: every namespace of the machine is looked into for
the addresses that its pods have. That is done only while a pod is without one, again after a while
if it was not found.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import anyio.to_thread

from cilia.linux.namespaces import network_namespaces
from cilia.linux.netns import NetNS
from statedb import DB, ReadTxn, RWTable, Table, WatchSet
from tables.addressing import IP
from tables.cluster.pod_namespaces import PodNamespace
from tables.cluster.pods import Pod, pod_key

INITIALIZER: Final = "pod-namespaces"
# A pod that is not found may have its address a little later than its object says.
RETRY_S: Final = 5.0
_LOCAL_V4: Final = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")

# Cookie and addresses of a namespace.
Found = tuple[int, frozenset[IP]]


class _Seen(NamedTuple):
    """Pods that have a namespace, rows that there are, what to wait for, all pods are known, all
    that can be read are."""

    pods: dict[str, Pod]
    held: dict[str, PodNamespace]
    watch: WatchSet
    listed: bool
    filled: bool


def look(namespaces: Iterable[NetNS]) -> list[Found]:
    """What there is to know of each; blocks."""
    return [namespace.run(_inside) for namespace in namespaces]


def _inside() -> Found:
    from bpf.features import netns_cookie  # loads libbpf, which other parts do without

    net = Path("/proc/thread-self/net")
    texts = set(_LOCAL_V4.findall((net / "fib_trie").read_text()))
    if (net / "if_inet6").exists():  # a kernel without IPv6 has none
        for line in (net / "if_inet6").read_text().splitlines():
            texts.add(str(ipaddress.ip_address(bytes.fromhex(line.split()[0]))))
    return netns_cookie(), frozenset(map(IP.parse, texts))


def look_everywhere() -> list[Found]:
    return look(network_namespaces())


class PodNamespaceReflector:
    """Follows pods and namespaces. ``run`` ends only when it is cancelled."""

    def __init__(
        self,
        db: DB,
        pods: Table[Pod],
        namespaces: RWTable[PodNamespace],
        look: Callable[[], list[Found]] = look_everywhere,
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._db = db
        self._pods = pods
        self._namespaces = namespaces
        self._look = look
        self._retry_s = retry_s
        with db.write_txn(namespaces) as wtxn:
            self._complete = namespaces.register_initializer(wtxn, INITIALIZER)

    async def run(self) -> None:
        while True:
            watch, missing = await self.step()
            with anyio.move_on_after(self._retry_s if missing else math.inf):
                await watch.wait()

    async def step(self) -> tuple[WatchSet, bool]:
        """Does what there is to do; returns what to wait for, and whether a pod was not found."""
        pods, held, watch, listed, filled = self._db.look(self._see)
        missing = {name: pod for name, pod in pods.items() if name not in held}
        found = await self._find(missing) if missing else []
        with self._db.write_txn(self._namespaces) as wtxn:
            for row in found:
                self._namespaces.insert(wtxn, row)
            for name in held.keys() - pods.keys():
                self._namespaces.delete(wtxn, held[name])
            if listed:
                self._complete(wtxn)
            elif filled:
                self._complete.stall(wtxn)
        return watch, len({row.pod for row in found}) < len(missing)

    def _see(self, txn: ReadTxn) -> _Seen:
        rows, changed = self._pods.all_watch(txn)
        filled, filling = self._pods.filled_watch(txn)
        listed = self._pods.initialized(txn)
        return _Seen(
            {pod_key(pod): pod for pod in rows if _has_namespace(pod)},
            {row.pod: row for row in self._namespaces.all(txn)},
            WatchSet(changed) if listed else WatchSet(changed, filling),
            listed,
            filled,
        )

    async def _find(self, missing: dict[str, Pod]) -> list[PodNamespace]:
        namespaces = await anyio.to_thread.run_sync(self._look)
        return [
            PodNamespace(name, cookie)
            for name, pod in missing.items()
            for cookie, addresses in namespaces
            if addresses.issuperset(pod.ips)
        ]


def _has_namespace(pod: Pod) -> bool:
    """Its own, and it runs in it."""
    return not pod.host_network and bool(pod.ips) and pod.phase == "Running"

# SPDX-License-Identifier: Apache-2.0
"""Programs look up netfilter's connections as soon as the kernel has what they need for it.

Where netfilter's connections are a module it may be loaded at any time: by the first rule of
another proxy, for example. Programs are verified against what the kernel has when they are loaded,
so they are loaded anew then, and take the place of those in force link by link.

The kernel announces a module before its types are there, so their file is looked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from bpf import features
from cilia.datapath.packets import NETFILTER_LOOKUP, constant
from cilia.datapath.programs import NodePrograms
from cilia.program.health import ModuleHealth
from statedb import DB, RWTable
from statedb.status import refreshing, set_status
from tables.datapath.attachments import Attachment

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NetfilterLookup"]

log = structlog.get_logger("datapath")

#: Exists while netfilter follows connections.
CONNTRACK: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")

#: Between two looks for the module, one stat each.
LOOK_S: Final = 2.0


class NetfilterLookup:
    """One task calls `run`, once the programs of this start are in force."""

    def __init__(
        self,
        db: DB,
        rows: RWTable[Attachment],
        programs: NodePrograms,
        health: ModuleHealth,
    ) -> None:
        """`rows`: of the programs; they are applied again when there are other ones."""
        self._db = db
        self._rows = rows
        self._programs = programs
        self._health = health
        self._told = ""

    async def run(self) -> None:
        """Return when programs look up connections; what they cannot do is told until then."""
        while not self._programs.has(NETFILTER_LOOKUP):
            self._tell(*missing())
            if features.CONNTRACK_BTF.exists() and features.has_conntrack_lookup():
                await self._load_anew({NETFILTER_LOOKUP: constant(True)})
            else:
                await anyio.sleep(LOOK_S)
        self._tell(True, "programs look up netfilter's connections")

    async def _load_anew(self, constants: Mapping[str, bytes]) -> None:
        """Raises: BPFError; those in force stay."""
        await anyio.to_thread.run_sync(self._programs.load_anew, constants)
        log.info("programs are loaded anew: netfilter follows connections by now")
        status = refreshing()
        with self._db.write_txn(self._rows) as wtxn:
            for row in list(self._rows.all(wtxn)):
                self._rows.insert(wtxn, set_status(row, status))

    def _tell(self, ok: bool, message: str) -> None:
        if message != self._told:
            self._told = message
            self._health("netfilter", ok, message)


def missing() -> tuple[bool, str]:
    """Return why programs do not look up connections, in the form of `ModuleHealth`."""
    if not CONNTRACK.exists():
        return True, "netfilter follows no connections yet; programs look them up when it does"
    return False, (
        "the kernel has no look-up of netfilter's connections for programs (Linux 5.19, BTF of"
        " nf_conntrack): a client may get the port of a masqueraded connection"
    )

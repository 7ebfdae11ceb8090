# SPDX-License-Identifier: Apache-2.0
"""Masquerading, wired: Node objects, options and a file -> exclusions -> maps of programs.

addresses that rest -> flows of pods that are gone
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

from cilia.cluster.wiring import ClusterPart
from cilia.datapath.wiring import DatapathPart
from cilia.masquerade.ended_flows import EndedFlows
from cilia.masquerade.exclusions import ExclusionsController
from cilia.masquerade.ip_masq_agent import IPMasqAgentFile
from cilia.masquerade.options import MasqueradeOptions
from cilia.program.health import HealthReporter
from cilia.program.parts import Context, Part
from reconcilers.masquerade.exclusions import exclusion_operations
from reconcilers.reconciler import Reconciler
from statedb import DB, Channel, ReadTxn, RWTable, Table
from tables.ipam.ip_allocations import IPAllocation
from tables.masquerade.exclusions import MasqueradeExclusion, new_masquerade_exclusions_table

__all__ = ["MasqueradePart", "build"]

#: Prefixes that fit into a line of `cilia status`.
SHOWN: Final = 4


@dataclass(kw_only=True)
class MasqueradePart(Part):
    exclusions: RWTable[MasqueradeExclusion]
    reconciler: Reconciler[MasqueradeExclusion]
    listed: Channel

    async def synchronised(self, db: DB) -> None:
        """Wait until all nodes were listed, and what they and the file say is in the maps."""
        await self.listed.wait()
        await self.reconciler.wait_until_reconciled(db.look(self.exclusions.revision))


def build(
    ctx: Context,
    options: MasqueradeOptions,
    cluster: ClusterPart,
    datapath: DatapathPart,
    allocations: Table[IPAllocation],
) -> MasqueradePart | None:
    """Masquerade, or not; `allocations`: the addresses of this node's pods."""
    flows = datapath.edge.flows
    if not options.masqueraded or flows is None:
        return None
    exclusions = new_masquerade_exclusions_table(ctx.db)
    reconciler = ctx.reconciler(exclusions, exclusion_operations(flows.masquerade))
    file = None
    if options.enable_ip_masq_agent:
        health = HealthReporter(ctx.db, ctx.health, "masquerade", "ip-masq-agent")
        file = IPMasqAgentFile(options.ip_masq_agent_config_path, health)
    controller = ExclusionsController(ctx.db, cluster.nodes, exclusions, options, file)
    part = MasqueradePart(exclusions=exclusions, reconciler=reconciler, listed=controller.listed)
    if file is not None:
        part.jobs["ip-masq-agent"] = file.run
    closed_s = options.conntrack_timeouts_s["regular_tcp_fin"]
    ended = EndedFlows(ctx.db, allocations, flows.conntrack.translations, closed_s)
    part.jobs |= {
        "masquerade-exclusions": controller.run,
        "reconcile-masquerade-exclusions": reconciler.run,
        "ended-flows": ended.run,
    }
    part.reports["masquerade"] = partial(_report, options, exclusions)
    return part


def _report(
    options: MasqueradeOptions, exclusions: Table[MasqueradeExclusion], txn: ReadTxn
) -> dict[str, Any]:
    """The part of `/status`: prefixes that keep the source, beside the nodes."""
    return {
        "ipv4": options.enable_ipv4_masquerade,
        "ipv6": options.enable_ipv6_masquerade,
        "exclusions": exclusions.num_objects(txn),
        "first": [str(row.prefix) for row in islice(exclusions.all(txn), SHOWN)],
    }

# SPDX-License-Identifier: Apache-2.0
"""Objects of the cluster, wired: objects -> pods, nodes, namespaces, problems, k8s-watches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from cilia.cluster.k8s_watches import K8sWatchReflector
from cilia.cluster.metrics import WatchMetrics
from cilia.cluster.nodes import namespace_reflector, node_reflector
from cilia.cluster.options import ClusterOptions
from cilia.cluster.own_node import OWN_NODE_FILE, OwnNodeFile
from cilia.cluster.pods import pod_reflector
from cilia.cluster.problems import ProblemLog, ProblemReflector
from cilia.cluster.shared_addresses import SharedAddresses
from cilia.k8s.watch import FollowedSource
from cilia.program.parts import Context, Part
from statedb import RWTable
from tables.cluster.k8s_watches import K8sWatch, new_k8s_watches_table
from tables.cluster.namespaces import Namespace, new_namespaces_table
from tables.cluster.nodes import Node, new_nodes_table
from tables.cluster.pods import Pod, new_pods_table

__all__ = ["ClusterPart", "build"]


@dataclass(kw_only=True)
class ClusterPart(Part):
    """Pods are those of this node."""

    pods: RWTable[Pod]
    nodes: RWTable[Node]
    namespaces: RWTable[Namespace]
    watches: RWTable[K8sWatch]


def build(ctx: Context, options: ClusterOptions, *, keeps: bool = False) -> ClusterPart:
    """Reflect the objects that no other feature owns, and how they are watched.

    `keeps`: what outlives a restart is kept in the state directory. Raises: OSError.
    """
    db, source = ctx.db, ctx.objects
    part = ClusterPart(
        pods=new_pods_table(db),
        nodes=new_nodes_table(db),
        namespaces=new_namespaces_table(db),
        watches=new_k8s_watches_table(db),
    )
    own = OwnNodeFile(options.run_dir / OWN_NODE_FILE, options.node_name) if keeps else None
    nodes = node_reflector(
        source, db, part.nodes, ctx.problems, restored=own.read() if own is not None else None
    )
    part.jobs = {
        "reflect-problems": ProblemReflector(source, db, ctx.problems).run,
        "log-problems": ProblemLog(db, ctx.problems).run,
        "reflect-pods": pod_reflector(source, db, part.pods, options.node_name, ctx.problems).run,
        "reflect-nodes": nodes.run,
        "shared-node-addresses": SharedAddresses(db, part.nodes, ctx.problems).run,
        "reflect-namespaces": namespace_reflector(source, db, part.namespaces, ctx.problems).run,
    }
    if own is not None:
        part.jobs["own-node"] = partial(own.follow, db, part.nodes)
    ctx.registry.register(WatchMetrics(db, part.watches))
    sources = [source]
    if ctx.shared is not None and ctx.shared.source is not source:
        sources.append(ctx.shared.source)
        refused = ProblemReflector(ctx.shared.source, db, ctx.problems, name="objects")
        part.jobs["reflect-objects-problems"] = refused.run
    for followed in sources:
        if isinstance(followed, FollowedSource):
            followed.observe(K8sWatchReflector(db, part.watches, ctx.health_of("k8s")).report)
    return part

# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoint objects, wired: endpoints -> desired rows -> objects -> rows of all nodes."""

from __future__ import annotations

from dataclasses import dataclass

from cilia.cluster.object_reconciler import ObjectReconciler, Plan
from cilia.endpoints.k8s_endpoints.controller import K8sEndpointsController
from cilia.endpoints.k8s_endpoints.objects import EndpointObjects
from cilia.endpoints.k8s_endpoints.reflector import k8s_endpoint_reflector
from cilia.k8s.object_writer import SharedObjects
from cilia.node.own_addresses import OwnAddresses
from cilia.program.health import HealthReporter
from cilia.program.parts import Context, Part
from statedb import RWTable, Table
from tables.cluster.pods import Pod
from tables.endpoints.desired_k8s_endpoints import (
    DesiredK8sEndpoint,
    new_desired_k8s_endpoints_table,
)
from tables.endpoints.endpoints import Endpoint
from tables.endpoints.k8s_endpoints import NODE, K8sEndpoint, new_k8s_endpoints_table

__all__ = ["K8sEndpointsPart", "build"]


@dataclass(kw_only=True)
class K8sEndpointsPart(Part):
    objects: RWTable[K8sEndpoint]
    desired: RWTable[DesiredK8sEndpoint]


def build(
    ctx: Context,
    shared: SharedObjects,
    endpoints: Table[Endpoint],
    pods: Table[Pod],
    own: OwnAddresses,
    sole: OwnAddresses,
) -> K8sEndpointsPart:
    """Say what this node's pods have, and read what all nodes say."""
    db = ctx.db
    objects = new_k8s_endpoints_table(db, NODE)
    desired = new_desired_k8s_endpoints_table(db)
    edge = EndpointObjects(objects, shared.writer)
    plan = Plan(
        rows=desired,
        objects=objects,
        work=edge.work,
        watch=edge.watch,
        well="all pods have their CiliumEndpoint",
        failed="CiliumEndpoints of {} pods are not as they should be: other nodes know these pods"
        " as they were, or not at all",
    )
    health = HealthReporter(db, ctx.health, "endpoints", "k8s-endpoints")
    part = K8sEndpointsPart(objects=objects, desired=desired)
    part.jobs = {
        "reflect-k8s-endpoints": k8s_endpoint_reflector(
            shared.source, db, objects, ctx.problems
        ).run,
        "k8s-endpoints": K8sEndpointsController(
            db, endpoints, pods, objects, desired, own, sole
        ).run,
        "write-k8s-endpoints": ObjectReconciler(db, plan, health).run,
    }
    return part

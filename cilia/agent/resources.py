# SPDX-License-Identifier: Apache-2.0
"""All that an agent reads of the cluster: the resources of its features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilia.agent.config import AgentConfig
from cilia.cluster.inputs import cluster_resources
from cilia.loadbalancer.resources import service_resources

if TYPE_CHECKING:
    from cilia.k8s.objects import K8sObject
    from cilia.k8s.resource import Resource


def resources(config: AgentConfig) -> list[Resource]:
    """Services come first: they are the most, and what waits for all lists waits for them."""
    from cilia.k8s.resource import Resource

    return [
        *service_resources(config),
        *cluster_resources(config),
        *map(Resource, shared_kinds(config)),
    ]


def shared_kinds(config: AgentConfig) -> list[type[K8sObject]]:
    """Return the kinds that agents write and agree by."""
    from cilia.k8s.crds import CiliumEndpoint, CiliumIdentity

    return [CiliumIdentity, CiliumEndpoint] if config.pod_network and not config.dry_run else []

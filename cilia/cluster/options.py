# SPDX-License-Identifier: Apache-2.0
"""The agent's options on what it reads of the cluster, and how that is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cilia.cluster.access_options import KubernetesOptions
from cilia.program.instance import InstanceOptions
from cilia.program.values import PositiveDuration
from cilia.script.environment import parse_duration

__all__ = ["ClusterOptions", "SourceOptions"]


class SourceOptions(KubernetesOptions):
    """The source of objects, and how it is read and checked."""

    k8s_manifests: Annotated[
        Path | None,
        Field(description="Directory of Kubernetes YAML to read and watch for changes."),
    ] = None

    k8s_objects_dir: Annotated[
        Path | None,
        Field(
            description="With --pod-network and --k8s-manifests: directory of the objects that"
            " the agents and the operator of one machine write and share (identities, endpoints),"
            " in place of an API server."
        ),
    ] = None

    k8s_watch_list_page_size: Annotated[
        int, Field(ge=1, le=10_000, description="Objects in a page of a list.")
    ] = 1000
    k8s_watch_proof_interval: Annotated[
        PositiveDuration,
        Field(description="How often each watch is compared with a list of versions."),
    ] = "1m"

    @property
    def proof_interval_s(self) -> float:
        return parse_duration(self.k8s_watch_proof_interval)

    @property
    def reads_api_server(self) -> bool:
        """Somebody said where an API server is, or who we are to it."""
        named = self.k8s_api_server or self.k8s_api_server_urls or self.k8s_kubeconfig_path
        return bool(named)


class ClusterOptions(SourceOptions, InstanceOptions):
    """What an agent reads of the cluster."""

    # The pages of the first lists come at once.
    k8s_client_burst: Annotated[
        int, Field(ge=1, description="Requests to the API server at once.")
    ] = 100

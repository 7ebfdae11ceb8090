# SPDX-License-Identifier: Apache-2.0
"""Where the agent's objects come from: a directory of manifests, or an API server.

The watches of an API server are these and no others, however large the cluster is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cilia.agent.config import AgentConfig
from cilia.cluster.access_options import open_client
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.narrowed import NarrowedSource
from cilia.program.errors import ProgramError

if TYPE_CHECKING:  # without an API server the `kubernetes` package is not loaded
    from cilia.k8s.api_source import ApiSource
    from cilia.k8s.resource import Resource

__all__ = ["Input", "cluster_resources", "open_input"]

# The addresses of API servers that the cluster last said, in the state directory.
SERVERS_FILE: Final = "api-servers.json"
_SERVICE_PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"
_HEADLESS: Final = "service.kubernetes.io/headless"
_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Input(msgspec.Struct, frozen=True):
    """The source of objects, what people call it, and the job that reads it."""

    source: NarrowedSource | ApiSource
    name: str
    job: str


def open_input(config: AgentConfig) -> Input:
    """Connects to nothing yet.

    Raises:
        ProgramError: no source is named, two are, or the one that is named cannot be read.
    """
    if config.k8s_manifests is None:
        if not (config.reads_api_server or os.path.exists(_ACCOUNT_TOKEN)):
            raise ProgramError(
                "no source of Kubernetes objects: name an API server with --k8s-api-server or"
                " --k8s-kubeconfig-path, or a directory of manifests with --k8s-manifests"
            )
        return _api_server(config)
    if config.reads_api_server:
        raise ProgramError("--k8s-manifests and an API server are two sources: name one of them")
    if not config.k8s_manifests.is_dir():
        raise ProgramError(f"--k8s-manifests={config.k8s_manifests} is no directory")
    source = NarrowedSource(ManifestSource(config.k8s_manifests), cluster_resources(config))
    return Input(source, str(config.k8s_manifests), "watch-manifests")


def _api_server(config: AgentConfig) -> Input:
    from cilia.k8s.api_source import ApiSource
    from cilia.k8s.resource_watch import Options

    kept = None
    if not config.dry_run:
        config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = config.run_dir / SERVERS_FILE
    client = open_client(config, kept=kept)
    options = Options(config.k8s_watch_list_page_size, config.proof_interval_s)
    source = ApiSource(client, list(cluster_resources(config)), options)
    return Input(source, ", ".join(map(str, client.servers.known)), "watch-api-server")


def cluster_resources(config: AgentConfig) -> Iterator[Resource]:
    """What is read of the cluster, narrowed as the field narrows it."""
    from cilia.k8s import objects as k8s
    from cilia.k8s.crds import CiliumLocalRedirectPolicy
    from cilia.k8s.resource import Resource

    proxy = config.k8s_service_proxy_name
    ours = f"{_SERVICE_PROXY_NAME}={proxy}" if proxy else f"!{_SERVICE_PROXY_NAME}"
    yield Resource(k8s.Service, ours)
    # Slices of headless Services have no frontend to serve.
    yield Resource(k8s.EndpointSlice, f"{ours},!{_HEADLESS}")
    yield Resource(k8s.Pod, field_selector=f"spec.nodeName={config.node_name}")
    yield Resource(k8s.Node)
    yield Resource(k8s.Namespace)
    if config.enable_local_redirect_policy:
        yield Resource(CiliumLocalRedirectPolicy)

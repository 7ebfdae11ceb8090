# SPDX-License-Identifier: Apache-2.0
"""Where the agent's objects come from: a directory of manifests, or an API server.

Each feature names the resources that it reads, and no others are watched, however large the cluster
is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cilia.cluster.access_options import open_client
from cilia.cluster.options import ClusterOptions
from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.narrowed import NarrowedSource
from cilia.program.errors import ProgramError
from cilia.program.instance import InstanceOptions

if TYPE_CHECKING:  # without an API server the `kubernetes` package is not loaded
    from cilia.k8s.api_source import ApiSource
    from cilia.k8s.resource import Resource

__all__ = ["Input", "cluster_resources", "file_copies", "open_input"]

# The addresses of API servers that the cluster last said, in the state directory.
SERVERS_FILE: Final = "api-servers.json"
# What is in force from each manifest, in the state directory.
COPIES_DIRECTORY: Final = "manifests"
STATE_FILE_COPIES: Final = "lb-state-file"
_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Input(msgspec.Struct, frozen=True):
    """The source of objects, what people call it, and the job that reads it."""

    source: NarrowedSource | ApiSource
    name: str
    job: str


def open_input(options: ClusterOptions, resources: Sequence[Resource]) -> Input:
    """Open the source of `resources`; nothing is connected yet.

    Raises:
        ProgramError: no source is named, two are, or the one that is named cannot be read.
    """
    if options.k8s_manifests is None:
        if not (options.reads_api_server or os.path.exists(_ACCOUNT_TOKEN)):
            raise ProgramError(
                "no source of Kubernetes objects: name an API server with --k8s-api-server or"
                " --k8s-kubeconfig-path, or a directory of manifests with --k8s-manifests"
            )
        return _api_server(options, resources)
    if options.reads_api_server:
        raise ProgramError("--k8s-manifests and an API server are two sources: name one of them")
    if not options.k8s_manifests.is_dir():
        raise ProgramError(f"--k8s-manifests={options.k8s_manifests} is no directory")
    copies = file_copies(options, COPIES_DIRECTORY)
    manifests = ManifestSource(options.k8s_manifests, copies=copies)
    source = NarrowedSource(manifests, resources)
    return Input(source, str(options.k8s_manifests), "watch-manifests")


def file_copies(options: InstanceOptions, name: str) -> LastReadable | None:
    """Return the copies of what is in force from files, in the state directory."""
    if options.dry_run:
        return None
    # Where maps are pinned, programs of an earlier agent may be in force.
    after_restart = (options.pin_dir / "maps").is_dir()
    return LastReadable(options.run_dir / name, after_restart=after_restart)


def _api_server(options: ClusterOptions, resources: Sequence[Resource]) -> Input:
    from cilia.k8s.api_source import ApiSource
    from cilia.k8s.resource_watch import Options

    kept = None
    if not options.dry_run:
        options.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = options.run_dir / SERVERS_FILE
    client = open_client(options, kept=kept)
    reading = Options(options.k8s_watch_list_page_size, options.proof_interval_s)
    source = ApiSource(client, resources, reading)
    return Input(source, ", ".join(map(str, client.servers.known)), "watch-api-server")


def cluster_resources(options: ClusterOptions) -> Iterator[Resource]:
    """Return what this feature reads of the cluster; of pods, those of this node."""
    from cilia.k8s import objects as k8s
    from cilia.k8s.resource import Resource

    yield Resource(k8s.Pod, field_selector=f"spec.nodeName={options.node_name}")
    yield Resource(k8s.Node)
    yield Resource(k8s.Namespace)

# SPDX-License-Identifier: Apache-2.0
"""Where the agent's objects come from: a directory of manifests, or an API server.

Each feature names the resources that it reads, and no others are watched, however large the cluster
is. Kinds that nodes write and agree by (*shared*) are in the API server too, or beside manifests in
a directory of files; with manifests alone a node agrees with nobody.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cilia.cluster.access_options import open_client, open_writing_client
from cilia.cluster.options import ClusterOptions, SourceOptions
from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.narrowed import NarrowedSource
from cilia.k8s.object_files import ObjectFiles, object_files_source
from cilia.k8s.object_writer import SharedObjects
from cilia.k8s.objects import K8sObject
from cilia.program.errors import ProgramError
from cilia.program.instance import InstanceOptions

if TYPE_CHECKING:  # without an API server the `kubernetes` package is not loaded
    from cilia.k8s.api_source import ApiSource
    from cilia.k8s.resource import Resource

__all__ = ["Input", "Kept", "cluster_resources", "file_copies", "open_input", "open_source"]

# The addresses of API servers that the cluster last said, in the state directory.
SERVERS_FILE: Final = "api-servers.json"
# What is in force from each manifest, in the state directory.
COPIES_DIRECTORY: Final = "manifests"
STATE_FILE_COPIES: Final = "lb-state-file"
_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Input(msgspec.Struct, frozen=True):
    """The source of objects, what people call it, the jobs that read, and what is shared."""

    source: NarrowedSource | ApiSource
    name: str
    jobs: Mapping[str, Callable[[], Awaitable[None]]]
    shared: SharedObjects | None = None
    # Entered while objects are written.
    writing: AbstractAsyncContextManager[object] = nullcontext()


@dataclass(frozen=True)
class Kept:
    """What of a source outlives the program; called once the options are found right."""

    # The file with the last known addresses of API servers.
    servers: Callable[[], Path | None] = lambda: None
    # Copies of what is in force from files.
    copies: Callable[[], LastReadable | None] = lambda: None


def open_input(
    options: ClusterOptions,
    resources: Sequence[Resource],
    shared: Sequence[type[K8sObject]] = (),
) -> Input:
    """Open an agent's source of `resources`, and of the kinds that are shared.

    Raises: ProgramError, as `open_source`.
    """
    copies = partial(file_copies, options, COPIES_DIRECTORY)
    return open_source(options, resources, shared, Kept(partial(_servers_file, options), copies))


def open_source(
    options: SourceOptions,
    resources: Sequence[Resource],
    shared: Sequence[type[K8sObject]],
    kept: Kept,
    *,
    service_address: bool = False,
) -> Input:
    """Open the source of `resources`, and of the kinds that are shared; nothing is connected yet.

    `service_address`: see `open_writing_client`.

    Raises:
        ProgramError: no source is named, two are, or the one that is named cannot be read.
    """
    if options.k8s_manifests is None:
        if not (options.reads_api_server or os.path.exists(_ACCOUNT_TOKEN)):
            raise ProgramError(
                "no source of Kubernetes objects: name an API server with --k8s-api-server or"
                " --k8s-kubeconfig-path, or a directory of manifests with --k8s-manifests"
            )
        if options.k8s_objects_dir is not None:
            raise ProgramError(
                "--k8s-objects-dir goes with --k8s-manifests: an API server has the objects that"
                " nodes share"
            )
        return _api_server(options, resources, shared, kept, service_address=service_address)
    if options.reads_api_server:
        raise ProgramError("--k8s-manifests and an API server are two sources: name one of them")
    if not options.k8s_manifests.is_dir():
        raise ProgramError(f"--k8s-manifests={options.k8s_manifests} is no directory")
    manifests = ManifestSource(options.k8s_manifests, copies=kept.copies())
    source = NarrowedSource(manifests, resources)
    jobs = {"watch-manifests": source.run}
    if options.k8s_objects_dir is None or not shared:
        return Input(source, str(options.k8s_manifests), jobs)
    directory = options.k8s_objects_dir
    if not directory.is_dir():
        raise ProgramError(
            f"--k8s-objects-dir={directory} is no directory: make it, one for all agents"
        )
    files = object_files_source(directory, *shared)
    jobs["watch-objects"] = files.run
    objects = SharedObjects(files, ObjectFiles(directory))
    return Input(source, str(options.k8s_manifests), jobs, objects)


def file_copies(options: InstanceOptions, name: str) -> LastReadable | None:
    """Return the copies of what is in force from files, in the state directory."""
    if options.dry_run:
        return None
    # Where maps are pinned, programs of an earlier agent may be in force.
    after_restart = (options.pin_dir / "maps").is_dir()
    return LastReadable(options.run_dir / name, after_restart=after_restart)


def _servers_file(options: ClusterOptions) -> Path | None:
    if options.dry_run:
        return None
    options.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return options.run_dir / SERVERS_FILE


def _api_server(
    options: SourceOptions,
    resources: Sequence[Resource],
    shared: Sequence[type[K8sObject]],
    kept: Kept,
    *,
    service_address: bool,
) -> Input:
    from cilia.k8s.api_source import ApiSource
    from cilia.k8s.resource_watch import Options

    file = kept.servers()
    writer = None
    if shared:
        writer = open_writing_client(options, kept=file, service_address=service_address)
    client = writer or open_client(options, kept=file)
    reading = Options(options.k8s_watch_list_page_size, options.proof_interval_s)
    source = ApiSource(client, resources, reading)
    name = ", ".join(map(str, client.servers.known))
    jobs = {"watch-api-server": source.run}
    if writer is None:
        return Input(source, name, jobs)
    return Input(source, name, jobs, SharedObjects(source, writer), writer)


def cluster_resources(options: ClusterOptions) -> Iterator[Resource]:
    """Return what this feature reads of the cluster; of pods, those of this node."""
    from cilia.k8s import objects as k8s
    from cilia.k8s.resource import Resource

    yield Resource(k8s.Pod, field_selector=f"spec.nodeName={options.node_name}")
    yield Resource(k8s.Node)
    yield Resource(k8s.Namespace)

# SPDX-License-Identifier: Apache-2.0
"""Services and their endpoints from one file, for a load balancer without an API server.

The file holds two lists of Kubernetes objects: ``services`` (v1 Service) and ``endpoints``
(discovery v1 EndpointSlice). It is followed like a directory of manifests. An empty file clears the
state; a file that goes away does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifest_files import READERS, list_items
from cilia.k8s.manifests import ManifestSource
from cilia.k8s.objects import EndpointSlice, K8sObject, Service

SETTLE_S: Final = 1.0
_LISTS: Final[dict[str, type[K8sObject]]] = {
    "services": Service,
    "endpoints": EndpointSlice,
}


def state_file_source(
    path: Path, settle_s: float = SETTLE_S, copies: LastReadable | None = None
) -> ManifestSource:
    """A source of the objects in the file, read once it has not changed for ``settle_s`` seconds.

    `copies`: what was in force when an agent starts while the file is broken or away.

    Raises ValueError if the name ends in neither .yaml, .yml nor .json.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(READERS)}")
    return ManifestSource(
        path.parent,
        origin="lb-state-file",
        wants=path.name.__eq__,
        items=_items,
        settle_s=settle_s,
        keeps_removed=True,
        copies=copies,
        always=[path.name] if copies is not None else [],
    )


def _items(form: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(form, Mapping):
        yield "", form
        return
    for path, kind in _LISTS.items():
        default = {"apiVersion": kind.API_VERSION, "kind": kind.KIND}
        yield from list_items(path, form.get(path), default)
    for path in sorted(form.keys() - _LISTS.keys()):
        yield path, form[path]

# SPDX-License-Identifier: Apache-2.0
"""Objects of the installation at the API server: where they are, applied and deleted one by one."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Final

from cilia.k8s.errors import StatusError
from cilia.k8s.writing import WritingClient

__all__ = ["Done", "apply", "delete", "named", "path_of", "read"]

MANAGER: Final = "cilia-cli"
NOT_FOUND: Final = 404
# Kinds that our manifests have: their collection, and whether they are in a namespace.
COLLECTIONS: Final = {
    "ClusterRole": ("clusterroles", False),
    "ClusterRoleBinding": ("clusterrolebindings", False),
    "ConfigMap": ("configmaps", True),
    "CustomResourceDefinition": ("customresourcedefinitions", False),
    "DaemonSet": ("daemonsets", True),
    "Deployment": ("deployments", True),
    "Lease": ("leases", True),
    "Namespace": ("namespaces", False),
    "Role": ("roles", True),
    "RoleBinding": ("rolebindings", True),
    "ServiceAccount": ("serviceaccounts", True),
}


class Done(Enum):
    """What became of an object."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    DELETED = "deleted"
    ABSENT = "was not there"


def path_of(form: dict[str, Any]) -> str:
    collection, namespaced = COLLECTIONS[form["kind"]]
    version, metadata = form["apiVersion"], form["metadata"]
    where = f"namespaces/{metadata['namespace']}/" if namespaced else ""
    root = "apis" if "/" in version else "api"
    return f"/{root}/{version}/{where}{collection}/{metadata['name']}"


def named(form: dict[str, Any]) -> str:
    """As kubectl names it."""
    return f"{form['kind'].lower()}/{form['metadata']['name']}"


async def read(client: WritingClient, form: dict[str, Any]) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(await client.fetch(path_of(form)))
    except StatusError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    return found


async def apply(client: WritingClient, form: dict[str, Any], *, dry_run: bool) -> Done:
    """Server-side apply: fields that others set and we do not name stay theirs."""
    before = await read(client, form)
    query = {"fieldManager": MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
    after = await client.apply(path_of(form), form, query)
    if before is None:
        return Done.CREATED
    if dry_run:  # the version stays; what would be written is compared
        return Done.UNCHANGED if _content(before) == _content(after) else Done.CHANGED
    same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    return Done.UNCHANGED if same else Done.CHANGED


def _content(form: dict[str, Any]) -> dict[str, Any]:
    """What a person means: without what the server notes about who wrote it when."""
    metadata = {
        key: value
        for key, value in form["metadata"].items()
        if key not in ("managedFields", "resourceVersion", "generation")
    }
    return {**form, "metadata": metadata, "status": None}


async def delete(client: WritingClient, form: dict[str, Any], *, dry_run: bool) -> Done:
    """What belongs to it goes first, so that nobody is left to run when its rights go."""
    found = await read(client, form)
    if found is None:
        return Done.ABSENT
    options = {"propagationPolicy": "Foreground"} | ({"dryRun": ["All"]} if dry_run else {})
    try:
        await client.delete(path_of(form), found["metadata"]["uid"], options)
    except StatusError as error:
        if error.code != NOT_FOUND:
            raise
        return Done.ABSENT
    return Done.DELETED

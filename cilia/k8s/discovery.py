# SPDX-License-Identifier: Apache-2.0
"""Whether the API server has a resource, by its own discovery documents.

A 404 alone does not say so: a load balancer in front of the API server, or its default backend,
answers 404 to everything. The documents are asked for after a 404:

    GET /apis                 does the server have the group in this version?
    GET /apis/GROUP/VERSION   does the version have the resource?
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cilia.k8s.client import Client
from cilia.k8s.resource import Resource, decoded


class _Version(msgspec.Struct, rename={"group_version": "groupVersion"}):
    group_version: str


class _Group(msgspec.Struct):
    versions: list[_Version]


class _Groups(msgspec.Struct, tag_field="kind", tag="APIGroupList"):
    groups: list[_Group]


class _Resource(msgspec.Struct):
    name: str


class _Resources(
    msgspec.Struct,
    tag_field="kind",
    tag="APIResourceList",
    rename={"group_version": "groupVersion"},
):
    group_version: str
    resources: list[_Resource]


_GROUPS: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(_Groups)
_RESOURCES: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(_Resources)


async def is_absent(client: Client, resource: Resource) -> bool:
    """Whether the server says that it has no such resource; those of the core group it always has.

    Raises:
        ApiError: no discovery document came.
    """
    version = resource.kind.API_VERSION
    if "/" not in version:
        return False
    groups: _Groups = decoded(_GROUPS, await client.fetch("/apis"))
    if all(v.group_version != version for group in groups.groups for v in group.versions):
        return True
    found: _Resources = decoded(_RESOURCES, await client.fetch(f"/apis/{version}"))
    return all(known.name != resource.name for known in found.resources)

# SPDX-License-Identifier: Apache-2.0
"""The proof that a watch told the truth: the versions of all objects beside what was told.

Versions are read as metadata alone, in pages of one consistent revision. The stream may be ahead of
that revision, or a moment behind; only what differs still after that moment was missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from cilia.k8s.client import METADATA, Client
from cilia.k8s.ledger import Differences, Ledger
from cilia.k8s.listing import Paging
from cilia.k8s.objects import ObjectKey
from cilia.k8s.resource import HEAD_PAGE, Resource, decoded, number
from cilia.k8s.signal import Signal

# What a list has and the stream has not sent yet may be on its way for so long.
GRACE_S: Final = 1.0


class Versions(msgspec.Struct, frozen=True):
    """Every object of a resource with its version, at one revision; and what it cost to know."""

    listed: dict[ObjectKey, int]
    revision: int
    bytes: int
    cpu_s: float


class Proof(msgspec.Struct, frozen=True):
    """`rewound`: the list is older than what the stream had sent before it was asked for. It is
    consistent, so the versions are those of another history: a store restored from a backup, or
    another cluster under the same address.
    """

    versions: Versions
    differences: Differences
    rewound: bool = False


async def read_versions(client: Client, resource: Resource, page_size: int) -> Versions:
    """Raises ApiError."""
    listed: dict[ObjectKey, int] = {}
    query: dict[str, str | int] = {**resource.query, "limit": page_size}
    paging = Paging("PartialObjectMetadataList")
    size, cpu_s = 0, 0.0
    while True:
        body = await client.fetch(resource.path, query, METADATA)
        started = time.thread_time()
        page = decoded(HEAD_PAGE, body)
        known = len(listed)
        for head in page.items or ():
            listed[resource.key(head)] = head.version
        token = paging.next(page, len(listed) - known)
        size += len(body)
        cpu_s += time.thread_time() - started
        if not token:
            return Versions(listed, number(page.metadata.resource_version), size, cpu_s)
        query["continue"] = token


async def prove(
    client: Client,
    resource: Resource,
    ledger: Ledger,
    moved: Signal,
    page_size: int,
    superseded: Callable[[], bool],
) -> Proof | None:
    """Compare; `moved` is set when the stream has brought something. None: a list came first, for
    which there is no need to wait, or everything was forgotten.

    Raises ApiError.
    """
    ledger.begin_proof()
    told = ledger.revision
    try:
        versions = await read_versions(client, resource, page_size)
        if ledger.proving and versions.revision < told:
            return Proof(versions, Differences(), rewound=True)
        until = time.monotonic() + GRACE_S
        while ledger.proving and not superseded():
            moved.clear()
            differences = ledger.differences(versions.listed, versions.revision)
            left_s = until - time.monotonic()
            if not differences or left_s <= 0:
                return Proof(versions, differences)
            with anyio.move_on_after(left_s):
                await moved.wait()
        return None
    finally:
        ledger.end_proof()

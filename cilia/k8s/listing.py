# SPDX-License-Identifier: Apache-2.0
"""All objects of a resource, page by page, at one revision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from cilia.k8s.client import Client
from cilia.k8s.errors import ApiError, ConnectionLost, Gone, Unreachable
from cilia.k8s.resource import PAGE, Page, Resource, decoded

# A list whose pages expire is begun again so often, then read in one piece.
PAGED_TRIES: Final = 3


async def pages(
    client: Client,
    resource: Resource,
    page_size: int,
    expired: Callable[[], None],
    failed: Callable[[ApiError], float],
) -> AsyncIterator[Page | None]:
    """The pages; None where the list begins anew: its pages expired, which `expired` is told.

    A list goes on where its connection was lost, with any server, after the seconds that `failed`
    says: to begin anew would keep a server busy that has too much to do.

    Raises ApiError.
    """
    token, tries, limit = "", 0, page_size
    while True:
        query = dict(resource.query)
        if limit:
            query["limit"] = limit
        if token:
            query["continue"] = token
        try:
            page: Page = decoded(PAGE, await client.fetch(resource.path, query))
        except Gone:
            if not token:
                raise
            expired()
            tries += 1
            token, limit = "", limit if tries < PAGED_TRIES else 0
            yield None
            continue
        except (ConnectionLost, Unreachable) as error:
            if not token:
                raise
            await asyncio.sleep(failed(error))
            continue
        yield page
        token = page.metadata.next
        if not token:
            return

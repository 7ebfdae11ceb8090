# SPDX-License-Identifier: Apache-2.0
"""All objects of a resource, page by page, at one revision."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio

from cilia.k8s.client import Client
from cilia.k8s.errors import ApiError, ConnectionLost, Garbage, Gone, Unreachable
from cilia.k8s.resource import PAGE, HeadPage, Page, Resource, decoded
from statedb.shown.text import shortened

# A list whose pages expire is begun again so often, then read in one piece.
PAGED_TRIES: Final = 3
# Pages in a row that bring nothing new: a server that looks through many objects for few has some.
IDLE_PAGES: Final = 100


class Paging:
    """Tells a list from something that is none, or does not end; begun anew with each list.

    `kind`: what the server calls the list.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._tokens: set[str] = set()
        self._idle = 0

    def next(self, page: Page | HeadPage, brought: int) -> str:
        """Return the token of the next page, empty after the last. `brought`: new objects of this.

        Raises Garbage.
        """
        if page.kind != self._kind:
            raise Garbage(f"a {shortened(page.kind) or 'page without a kind'}, not a {self._kind}")
        token = page.metadata.next
        self._idle = 0 if brought else self._idle + 1
        if token and (token in self._tokens or self._idle > IDLE_PAGES):
            raise Garbage(f"the pages of a {self._kind} do not end")
        self._tokens.add(token)
        return token


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
    paging = Paging(resource.list_kind)
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
            paging = Paging(resource.list_kind)
            yield None
            continue
        except (ConnectionLost, Unreachable) as error:
            if not token:
                raise
            await anyio.sleep(failed(error))
            continue
        token = paging.next(page, len(page.items or ()))
        yield page
        if not token:
            return

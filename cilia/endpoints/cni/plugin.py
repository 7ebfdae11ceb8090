# SPDX-License-Identifier: Apache-2.0
"""The contract of whoever carries the requests of container runtimes out."""

from __future__ import annotations

from typing import Protocol

from cilia.endpoints.cni.requests import Request
from cilia.endpoints.cni.results import Result

__all__ = ["Plugin"]


class Plugin(Protocol):
    """Carries requests out. Each raises CNIError for what the runtime is to be told; any other
    error is told as internal. Requests of one attachment come one after the other; each may be
    cancelled when it takes too long. `request.netns_fd` is closed when the method returns.
    """

    async def wait(self, request: Request) -> None:
        """Wait for what an ADD needs. It takes no place of other requests, and is cancelled when
        nobody waits for the ADD any more.
        """

    async def add(self, request: Request) -> Result:
        """Connect a container; the network namespace is there."""

    async def delete(self, request: Request) -> None:
        """Take away what an ADD made, or part of it, or nothing. May come again, without a network
        namespace, and for an attachment that was never added.
        """

    async def check(self, request: Request) -> None:
        """Compare what is in force with `request.prev_result`."""

    async def status(self, request: Request) -> None:
        """Raise if an ADD would fail."""

    async def gc(self, request: Request) -> None:
        """Take away what is left of attachments that are not among `request.valid_attachments`,
        which are those of `request.network`.
        """

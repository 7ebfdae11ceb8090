# SPDX-License-Identifier: Apache-2.0
"""A client that also writes. A type of its own: who is given a `Client` can only read."""

from __future__ import annotations

import asyncio
from typing import Final

import anyio.to_thread
import msgspec

import cilia
from cilia.k8s.client import JSON, Client
from cilia.k8s.errors import ConnectionLost, StatusError, Unauthorized

__all__ = ["APPLY", "MERGE", "WritingClient"]

# Content types of a PATCH: server-side apply (JSON is YAML), and RFC 7386.
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"


class WritingClient(Client):
    """Requests of which one is not repeated by itself: who writes decides what a loss means."""

    async def send(
        self, method: str, path: str, body: object = None, content_type: str = JSON
    ) -> bytes:
        """The answer's body, within the request's time.

        Raises:
            Unreachable: it was not sent.
            ConnectionLost: it may have been carried out.
            StatusError: it was refused.
        """
        try:
            async with asyncio.timeout(self.limits.request_timeout_s):
                return await self._sent(method, path, body, content_type)
        except TimeoutError:
            raise ConnectionLost(
                f"{method} {path}: no answer within {self.limits.request_timeout_s:g} s"
            ) from None

    async def _sent(self, method: str, path: str, body: object, content_type: str) -> bytes:
        await self._bucket.take()
        connection = await self._connected()
        headers = [
            *await anyio.to_thread.run_sync(self._access.headers),
            ("accept", JSON),
            ("content-type", content_type),
            ("user-agent", f"cilia/{cilia.__version__}"),
        ]
        data = b"" if body is None else msgspec.json.encode(body)
        try:
            async with connection.request(method, path, headers, data) as response:
                if 200 <= response.status < 300:
                    return await response.body()
                raise await self._refused(await self._refusal(response))
        except ConnectionLost:
            if not connection.usable:
                self._failed(connection)
            raise

    async def _refused(self, error: StatusError) -> StatusError:
        if isinstance(error, Unauthorized):
            await anyio.to_thread.run_sync(self._access.reload)
        return error

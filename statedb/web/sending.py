# SPDX-License-Identifier: Apache-2.0
"""An answer that is sent in pieces: it ends when the reader goes away or takes nothing for long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import anyio
import anyio.lowlevel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["HEARTBEAT_S", "STALL_S", "Sender", "Streamed"]

STALL_S = 30.0  # a piece (64 KiB) not taken for so long: the reader hangs
HEARTBEAT_S = 15.0  # tells a reader that an idle stream is alive; its timeout is a few of these


class Sender:
    """The response's messages; a reader that takes none for STALL_S cancels the whole answer."""

    def __init__(self, send: Send, status: int, headers: Any, scope: anyio.CancelScope) -> None:
        self._send = send
        self._scope = scope
        self._start = {"type": "http.response.start", "status": status, "headers": headers}
        self._started = False

    async def send(self, body: bytes, more: bool = True) -> None:
        with anyio.move_on_after(STALL_S) as limit:
            if not self._started:
                self._started = True
                await self._send(self._start)
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        if limit.cancelled_caught:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint()

    async def end(self) -> None:
        await self.send(b"", more=False)


class Streamed(Response, ABC):
    """An answer of unknown length. A connection that is closed without the answer's end is how the
    reader knows that there was more.
    """

    def __init__(self, media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]

    @abstractmethod
    async def send_all(self, sender: Sender) -> None:
        """Send the pieces; it is cancelled when the reader goes away or stalls."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
            sender = Sender(send, self.status_code, self.raw_headers, group.cancel_scope)
            await self.send_all(sender)
            group.cancel_scope.cancel()


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()

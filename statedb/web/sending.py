# SPDX-License-Identifier: Apache-2.0
"""An answer that is sent in pieces: it ends when the reader goes away or takes nothing for long."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
from starlette.types import Receive, Send

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


async def cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()

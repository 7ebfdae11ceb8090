# SPDX-License-Identifier: Apache-2.0
"""Between a client and an API server: forwards requests, and does to the answers what networks,
middleboxes and failing servers do.

A fault is armed for one resource and happens at the next watch event that passes; those of requests
follow on a cut, since only then are there requests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Final

import orjson

from cilia.k8s.client import Client
from cilia.k8s.errors import ApiError, StatusError
from tests.cilia.k8s.fake_api import event
from tests.cilia.k8s.h2_server import H2Server, Reply, Request


class Fault(StrEnum):
    CUT = "cut"
    HALF_OPEN = "half-open"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DROP = "drop"
    GONE = "410"
    BUSY = "429"
    ERROR = "500"
    GARBAGE = "garbage"


REMEMBERED: Final = 20
_CODES: Final = {Fault.BUSY: 429, Fault.ERROR: 500}


class Armed:
    """One fault, and when it happened (by the event loop's clock)."""

    def __init__(self, fault: Fault, path: str) -> None:
        self.fault, self.path = fault, path
        self.happened: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def happen(self) -> None:
        if not self.happened.done():
            self.happened.set_result(asyncio.get_running_loop().time())


class FaultProxy:
    """`arm` faults while it serves; `delay_s` is the range of delays."""

    def __init__(
        self, upstream: Client, rng: random.Random, delay_s: tuple[float, float] = (5.0, 8.0)
    ) -> None:
        self.server = H2Server(self._handle)
        self._upstream = upstream
        self._rng = rng
        self._delay_s = delay_s
        self._armed: list[Armed] = []
        # Status codes that the next requests are answered with, and the faults that wait for it.
        self._refusals: list[tuple[int, Armed]] = []

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()
        await self._upstream.close()

    def arm(self, fault: Fault, path: str) -> Armed:
        armed = Armed(fault, path)
        self._armed.append(armed)
        return armed

    def calm(self) -> None:
        """Nothing more happens."""
        self._armed.clear()
        self._refusals.clear()

    async def _handle(self, request: Request, reply: Reply) -> None:
        if self._refusals:
            code, armed = self._refusals.pop(0)
            headers = {"retry-after": "1"} if code == 429 else {}
            await reply.whole(code, b'{"kind":"Status","message":"injected"}', headers)
            armed.happen()
            return
        try:
            async with self._upstream.get(
                request.path, request.query, request.headers["accept"]
            ) as response:
                reply.head(200)
                if request.query.get("watch"):
                    await self._stream(request.path, _lines(response.chunks()), reply)
                else:
                    await reply.send(await response.body())
        except StatusError as error:
            await reply.whole(error.code, b'{"kind":"Status"}')
            return
        except ApiError:
            reply.connection.cut()
            return
        reply.end()

    async def _stream(self, path: str, lines: AsyncIterator[bytes], reply: Reply) -> None:
        sent: list[bytes] = []
        held: tuple[bytes, Armed] | None = None
        async for line in lines:
            if held is not None:
                await reply.send(line + held[0])
                held[1].happen()
                held = None
                continue
            armed = self._next(path)
            if armed is None:
                await reply.send(line)
            elif armed.fault is Fault.REORDER:
                held = (line, armed)
            else:
                await self._inject(armed, line, sent, reply)
            sent = [*sent[-REMEMBERED:], line]

    def _next(self, path: str) -> Armed | None:
        for armed in self._armed:
            if armed.path == path:
                self._armed.remove(armed)
                return armed
        return None

    async def _inject(self, armed: Armed, line: bytes, sent: list[bytes], reply: Reply) -> None:
        connection = reply.connection
        match armed.fault:
            case Fault.DROP:
                pass
            case Fault.DUPLICATE:
                again = self._rng.choice([line, *sent[-3:]])
                await reply.send(line + again)
            case Fault.GARBAGE:
                await reply.send(self._garbage(line))
            case Fault.GONE:
                await reply.send(event("ERROR", {"code": 410, "message": "injected"}))
            case Fault.HALF_OPEN:
                connection.frozen = True
            case Fault.DELAY:
                connection.delay_s = self._rng.uniform(*self._delay_s)
                await reply.send(line)
            case _:
                connection.cut()
                if armed.fault in _CODES:
                    self._refusals.append((_CODES[armed.fault], armed))
                    return
        armed.happen()

    def _garbage(self, line: bytes) -> bytes:
        middle = self._rng.randrange(1, len(line) - 1)
        return self._rng.choice(
            [
                line[:middle] + b"\n",
                self._rng.randbytes(60).replace(b"\n", b"?") + b"\n",
                orjson.dumps({"hello": "world"}) + b"\n",
                b"<html>502 Bad Gateway</html>\n",
            ]
        )


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"

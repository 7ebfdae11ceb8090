# SPDX-License-Identifier: Apache-2.0
"""An HTTP/2 server in this process, whose connections can be cut, frozen and delayed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import msgspec

CHUNK: Final = 16_384


class Request(msgspec.Struct, frozen=True):
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    target: str


class Closed(Exception):
    """The client is gone, or no longer wants the answer."""


class Reply:
    """One answer under way."""

    def __init__(self, connection: ServerConnection, stream_id: int) -> None:
        self.connection = connection
        self._stream_id = stream_id
        self.window = asyncio.Event()
        self.closed = False

    def head(self, status: int, headers: dict[str, str] | None = None) -> None:
        fields = [(":status", str(status)), *(headers or {}).items()]
        self._do(lambda h: h.send_headers(self._stream_id, fields))

    async def send(self, data: bytes) -> None:
        """Waits for the client's window. Raises Closed."""
        view = memoryview(data)
        while view:
            if self.closed:
                raise Closed
            room = min(CHUNK, self.connection.window(self._stream_id), len(view))
            if room <= 0:
                self.window.clear()
                await self.window.wait()
                continue
            part = bytes(view[:room])
            self._do(lambda h, part=part: h.send_data(self._stream_id, part))  # type: ignore[misc]
            view = view[room:]

    def end(self) -> None:
        self._do(lambda h: h.end_stream(self._stream_id))

    async def whole(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.head(status, headers)
        await self.send(body)
        self.end()

    def _do(self, step: Callable[[h2.connection.H2Connection], object]) -> None:
        if self.closed:
            raise Closed
        self.connection.do(step)


Handler = Callable[[Request, Reply], Awaitable[None]]


class ServerConnection(asyncio.Protocol):
    def __init__(self, server: H2Server) -> None:
        self._server = server
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._replies: dict[int, tuple[Reply, asyncio.Task[None]]] = {}
        self._transport: asyncio.Transport | None = None
        # Nothing goes in or out any more, and the connection stays.
        self.frozen = False
        # Everything comes so much later, in order.
        self.delay_s = 0.0

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)
        self._h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.frozen:
            return
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, self._receive, data)
        else:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self.frozen:
            return
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.H2Error:
            self.cut()
            return
        for event in events:
            match event:
                case h2.events.RequestReceived():
                    self._begin(event)
                case h2.events.WindowUpdated():
                    for reply, _ in self._replies.values():
                        reply.window.set()
                case h2.events.StreamReset():
                    self._drop(event.stream_id)
        self._flush()

    def _begin(self, event: h2.events.RequestReceived) -> None:
        headers = {str(k): str(v) for k, v in event.headers or ()}
        parts = urlsplit(headers[":path"])
        request = Request(parts.path, dict(parse_qsl(parts.query)), headers, headers[":path"])
        assert event.stream_id is not None
        reply = Reply(self, event.stream_id)
        task = asyncio.get_running_loop().create_task(self._serve(request, reply))
        self._replies[event.stream_id] = (reply, task)

    async def _serve(self, request: Request, reply: Reply) -> None:
        with contextlib.suppress(Closed):
            await self._server.handler(request, reply)

    def _drop(self, stream_id: int | None) -> None:
        reply, task = self._replies.pop(stream_id or 0, (None, None))
        if reply is not None and task is not None:
            reply.closed = True
            task.cancel()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        for stream_id in list(self._replies):
            self._drop(stream_id)

    def window(self, stream_id: int) -> int:
        return self._h2.local_flow_control_window(stream_id)

    def do(self, step: Callable[[h2.connection.H2Connection], object]) -> None:
        try:
            step(self._h2)
        except h2.exceptions.H2Error:
            raise Closed from None
        self._flush()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if not data or self.frozen:
            return
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, self._write, data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self.frozen and not self._transport.is_closing():
            self._transport.write(data)


class H2Server:
    """Serves one handler on a loopback port."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.connections: set[ServerConnection] = set()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens; again on the same port after `stop`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ServerConnection(self), "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.cut()
        await asyncio.sleep(0)

# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 connection (RFC 9113) that carries all reading from one server, with proof of life.

Watches are silent for minutes, so silence proves nothing. The connection therefore asks: after
`ping_s` without a byte it sends a PING, and after `limit_s` without a byte it is given up, with all
its requests. That finds a peer that is gone, a path that swallows packets, and a middlebox that
keeps the TCP connection and forwards nothing, at a few bytes a second for all watches together. The
protocol is `h2`'s; here are the socket, the flow of bytes and the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from cilia.k8s.errors import ApiError, ConnectionLost, Garbage, Unreachable, Unresponsive

# What one answer may have under way before its reader takes it, and all answers together.
STREAM_WINDOW: Final = 1 << 20
CONNECTION_WINDOW: Final = 32 << 20
# A page of 1,000 objects is some MB; the largest that an API server takes would be 3 GB.
MOST_BODY_BYTES: Final = 512 << 20
# Each frame costs a few Python calls: a list page in large ones is cheaper.
FRAME: Final = 1 << 18
# The clock counts ticks, not seconds: a process that was stopped finds the bytes that waited for it
# before it finds that time has passed.
TICK_S: Final = 0.25

Headers = Iterable[tuple[str, str]]


class Response:
    """One answer; its body is read once, in chunks."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._connection = connection
        self._stream_id = stream_id
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._error: ApiError | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ConnectionLost when it does not end by itself."""
        while True:
            while self._chunks:
                data, credit = self._chunks.popleft()
                self._connection.consumed(self._stream_id, credit)
                yield data
            if self._ended:
                return
            await self.moved()

    async def body(self, most: int = MOST_BODY_BYTES) -> bytes:
        """Raises Garbage when it is longer than `most` bytes, and as `chunks`."""
        parts, size = list[bytes](), 0
        async for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size > most:
                raise Garbage(f"an answer of more than {most} bytes")
        return b"".join(parts)

    async def moved(self) -> None:
        """Waits for a change; raises what ended the answer, once all that came was read."""
        if self._error is not None:
            raise self._error
        self._wake.clear()
        await self._wake.wait()

    async def headers_come(self) -> None:
        while not self.status:
            await self.moved()

    @property
    def ended(self) -> bool:
        return self._ended or self._error is not None

    # -- called by the connection

    def head(self, headers: Headers) -> None:
        fields = {str(name): str(value) for name, value in headers}
        self.status = int(fields.pop(":status", "0"))
        self.headers = fields
        self._wake.set()

    def data(self, data: bytes, credit: int) -> None:
        self._chunks.append((data, credit))
        self._wake.set()

    def end(self, error: ApiError | None = None) -> None:
        if error is None:
            self._ended = True
        elif not self._ended:
            self._error = error
        self._wake.set()


class Connection(asyncio.Protocol):
    """See above. `bytes_received` and `bytes_sent` count what the socket carried, without TLS."""

    def __init__(self, authority: str, ping_s: float, limit_s: float) -> None:
        self.authority = authority
        self.bytes_received = 0
        self.bytes_sent = 0
        self._ping_s = ping_s
        self._limit_s = limit_s
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self._responses: dict[int, Response] = {}
        self._silent_ticks = 0
        self._transport: asyncio.Transport | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._ready = asyncio.Event()
        self._error: ApiError | None = None
        self._leaving = False
        self._scheme = "http"

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        server_hostname: str | None = None,
        timeout_s: float,
        ping_s: float,
        limit_s: float,
    ) -> Connection:
        """A connection on which the server has said that it speaks HTTP/2.

        Raises Unreachable.
        """
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        connection = cls(authority, ping_s, limit_s)
        try:
            async with asyncio.timeout(timeout_s):
                loop = asyncio.get_running_loop()
                hostname = (server_hostname or host) if tls else None
                await loop.create_connection(
                    lambda: connection, host, port, ssl=tls, server_hostname=hostname
                )
                await connection._ready.wait()
        except (OSError, ValueError) as error:
            connection.close()
            reason = "no answer" if isinstance(error, TimeoutError) else str(error)
            raise Unreachable(f"{connection.authority}: {reason}") from None
        except asyncio.CancelledError:
            connection.close()
            raise
        if connection._error is not None:
            raise Unreachable(f"{connection.authority}: {connection._error}")
        return connection

    @property
    def usable(self) -> bool:
        """New requests can be made."""
        return self._error is None and not self._leaving and self._transport is not None

    @contextlib.asynccontextmanager
    async def request(self, path: str, headers: Headers = ()) -> AsyncIterator[Response]:
        """Send a GET and give its answer once the headers are there; the rest of the answer is
        dropped at the end of the block.

        Raises ConnectionLost.
        """
        if self._error is not None:
            raise ConnectionLost(f"{self.authority}: {self._error}")
        stream_id = self._send_head(path, headers)
        response = self._responses[stream_id] = Response(self, stream_id)
        try:
            await response.headers_come()
            yield response
        finally:
            self._forget(stream_id, response)

    def _send_head(self, path: str, headers: Headers) -> int:
        try:
            stream_id = self._h2.get_next_available_stream_id()
            head = (
                (":method", "GET"),
                (":scheme", self._scheme),
                (":authority", self.authority),
                (":path", path),
                *headers,
            )
            self._h2.send_headers(stream_id, head, end_stream=True)
        except h2.exceptions.H2Error as error:
            raise ConnectionLost(f"{self.authority}: {error}") from None
        self._flush()
        return stream_id

    def _forget(self, stream_id: int, response: Response) -> None:
        self._responses.pop(stream_id, None)
        if not response.ended:
            with contextlib.suppress(h2.exceptions.H2Error):
                self._h2.reset_stream(stream_id, 8)  # CANCEL
                self._flush()
        if self._leaving and not self._responses:
            self.close()

    def consumed(self, stream_id: int, credit: int) -> None:
        """The reader has taken so many bytes: the server may send as many more."""
        if self._error is None and credit:
            with contextlib.suppress(h2.exceptions.H2Error):
                self._h2.acknowledge_received_data(credit, stream_id)
                self._flush()

    def close(self) -> None:
        self._lost(ConnectionLost("closed"))

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        tls = transport.get_extra_info("ssl_object")
        self._scheme = "http" if tls is None else "https"
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._lost(Unreachable("the server does not speak HTTP/2"))
            return
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: FRAME,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 16,
            },
        )
        self._h2.max_inbound_frame_size = FRAME
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self._flush()
        self._tick()

    def data_received(self, data: bytes) -> None:
        self._silent_ticks = 0
        self.bytes_received += len(data)
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.H2Error as error:
            self._lost(Garbage(f"{self.authority}: {error or type(error).__name__}"))
            return
        for event in events:
            self._take(event)
        self._flush()

    def eof_received(self) -> None:
        self._lost(ConnectionLost("the server closed the connection"))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(ConnectionLost(str(error) if error else "the server closed the connection"))

    # --

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self._ready.set()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._leave(event)
        elif (stream_id := getattr(event, "stream_id", None)) is not None:
            response = self._responses.get(stream_id)
            if response is not None:
                self._answer(response, event)
            elif isinstance(event, h2.events.DataReceived):
                self.consumed(stream_id, event.flow_controlled_length or 0)

    def _answer(self, response: Response, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                response.head(event.headers)  # type: ignore[arg-type]  # decoded, see header_encoding
            case h2.events.DataReceived():
                response.data(event.data or b"", event.flow_controlled_length or 0)
            case h2.events.StreamEnded():
                response.end()
            case h2.events.StreamReset():
                response.end(ConnectionLost(f"{self.authority}: stream reset ({event.error_code})"))

    def _leave(self, event: h2.events.ConnectionTerminated) -> None:
        """The server takes no further requests here; those under way may end."""
        self._leaving = True
        if event.error_code or not self._responses:
            self._lost(ConnectionLost(f"{self.authority}: going away ({event.error_code})"))

    def _tick(self) -> None:
        """Asks a silent server, gives up a dead one."""
        if self._error is not None:
            return
        silent_s = self._silent_ticks * TICK_S
        if silent_s >= self._limit_s:
            self._lost(Unresponsive(f"{self.authority}: nothing came for {self._limit_s:g} s"))
            return
        if silent_s >= self._ping_s and self._ready.is_set():
            with contextlib.suppress(h2.exceptions.H2Error):
                self._h2.ping(self._silent_ticks.to_bytes(8, "big"))
                self._flush()
        self._silent_ticks += 1
        self._clock = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self.bytes_sent += len(data)
            self._transport.write(data)

    def _lost(self, error: ApiError) -> None:
        """Ends everything; the first reason stays."""
        if self._error is not None:
            return
        self._error = error
        if self._clock is not None:
            self._clock.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._ready.set()
        for response in self._responses.values():
            response.end(error)

# SPDX-License-Identifier: Apache-2.0
"""Requests to whichever API server answers: one connection, credentials, failover, a rate limit.

Only reading: lists, watches and small objects, as bytes. One HTTP/2 connection (`http2`) carries
everything. When it is lost the next request opens another, to the next server if this one failed.
"""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final
from urllib.parse import urlencode

import anyio
import anyio.to_thread
import msgspec
import structlog

import cilia
from cilia.k8s.access import Access
from cilia.k8s.api_servers import Server, Servers
from cilia.k8s.errors import (
    AccessError,
    ConnectionLost,
    Garbage,
    StatusError,
    Unauthorized,
    Unreachable,
    status_error,
)
from cilia.k8s.http2 import Connection, Response

log = structlog.get_logger("k8s")

JSON: Final = "application/json"
# Objects without spec and status: what a proof needs.
METADATA: Final = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
# So many answers of 5xx in a row, and the next server is tried.
SERVER_ERRORS: Final = 3
# A Retry-After counts up to here: a retry costs little, and the one who says it may be wrong.
LONGEST_RETRY_AFTER_S: Final = 10.0
# An answer that is an error is short; of a longer one the beginning is shown.
MOST_ERROR_BYTES: Final = 64 << 10
ERROR_SHOWN: Final = 300


class Limits(msgspec.Struct, frozen=True):
    """Times in seconds; `qps` requests a second in the long run, `burst` at once."""

    connect_timeout_s: float = 5.0
    # Silence after which the server is asked, and after which the connection is given up.
    ping_s: float = 1.0
    heartbeat_timeout_s: float = 3.0
    # One list page or small object, from the request to its end.
    request_timeout_s: float = 30.0
    qps: float = 10.0
    burst: int = 20


class _Bucket:
    """Tokens that come back at a rate; a request takes one."""

    def __init__(self, rate: float, size: int) -> None:
        self._rate, self._size = rate, size
        self._tokens, self._then = float(size), time.monotonic()

    async def take(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._then) * self._rate) - 1
        self._then = now
        if self._tokens < 0:
            await anyio.sleep(-self._tokens / self._rate)


class _Status(msgspec.Struct):
    """The part of a Kubernetes `Status` that is used."""

    message: str = ""


class Traffic(msgspec.Struct):
    """Bytes on the wire, before TLS, and requests."""

    received: int = 0
    sent: int = 0
    requests: int = 0


class Client:
    """See above. `report` is told each change of the server in use."""

    def __init__(
        self,
        access: Access,
        servers: Servers,
        limits: Limits | None = None,
        *,
        report: Callable[[Server], None] = lambda server: None,
    ) -> None:
        self.servers = servers
        self.limits = limits or Limits()
        self.connects = 0
        self._access = access
        self._named = access.server  # the kubeconfig's server, as `servers` has it
        self._report = report
        self._bucket = _Bucket(self.limits.qps, self.limits.burst)
        self._opening = anyio.Lock()
        self._tried = False
        self._connection: Connection | None = None
        self._server: Server | None = None
        self._past = Traffic()
        self._server_errors = 0
        self._tell_access: Callable[[str], None] = lambda problem: None

    def observe_access(self, observer: Callable[[str], None]) -> None:
        """Have it told what is wrong with credentials that were read again; empty: nothing."""
        self._tell_access = observer

    @property
    def traffic(self) -> Traffic:
        """Since the beginning, over all connections."""
        now = self._connection
        received, sent = (now.bytes_received, now.bytes_sent) if now else (0, 0)
        return Traffic(self._past.received + received, self._past.sent + sent, self._past.requests)

    @contextlib.asynccontextmanager
    async def get(
        self, path: str, query: Mapping[str, str | int] | None = None, accept: str = JSON
    ) -> AsyncIterator[Response]:
        """A successful answer, whose body is read inside the block.

        What continues a list is part of its first request to the rate limit: a page waits for the
        one before it anyway, and waiting longer only makes a large cluster's start slow.

        Raises:
            Unreachable, ConnectionLost: no answer; the next request tries elsewhere.
            StatusError: an answer other than 200.
        """
        if not (query and "continue" in query):
            await self._bucket.take()
        connection = await self._connected()
        headers = [
            *await anyio.to_thread.run_sync(self._access.headers),
            ("accept", accept),
            ("user-agent", f"cilia/{cilia.__version__}"),
        ]
        self._past.requests += 1
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            async with connection.request(target, headers) as response:
                await self._check(response)
                yield response
        except ConnectionLost:
            if not connection.usable:
                self._failed(connection)
            raise

    async def fetch(
        self, path: str, query: Mapping[str, str | int] | None = None, accept: str = JSON
    ) -> bytes:
        """The whole body of an answer that comes within the request's time.

        Raises as `get`.
        """
        try:
            with anyio.fail_after(self.limits.request_timeout_s):
                async with self.get(path, query, accept) as response:
                    return await response.body()
        except TimeoutError:
            raise ConnectionLost(
                f"{path}: no complete answer within {self.limits.request_timeout_s:g} s"
            ) from None

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _connected(self) -> Connection:
        async with self._opening:
            if self._connection is not None and self._connection.usable:
                return self._connection
            self._forget()
            if self._tried:
                await self._read_access_again()
            self._tried = True
            server = self.servers.current
            tls = await anyio.to_thread.run_sync(self._access.tls) if server.tls else None
            try:
                connection = await Connection.open(
                    server.host,
                    server.port,
                    tls,
                    server_hostname=self._access.server_hostname,
                    timeout_s=self.limits.connect_timeout_s,
                    ping_s=self.limits.ping_s,
                    limit_s=self.limits.heartbeat_timeout_s,
                )
            except Unreachable:
                self.servers.failed(server)
                raise
            self.connects += 1
            self._connection, self._server = connection, server
            self._report(server)
            return connection

    async def _read_access_again(self) -> None:
        """Before another connection: certificates, tokens and the address may have been replaced
        meanwhile. Files that cannot be read now leave what was read before.
        """
        try:
            await anyio.to_thread.run_sync(self._access.reload)
            if self._access.server != self._named:
                self.servers.renamed(self._named, self._access.server)
                self._named = self._access.server
        except AccessError as error:
            log.warning("credentials cannot be read again", error=str(error))
            self._tell_access(str(error))
            return
        self._tell_access("")

    def _failed(self, connection: Connection) -> None:
        """A server that lost its connection is the last to be tried again."""
        if connection is self._connection and self._server is not None:
            self.servers.failed(self._server)
            self._forget()

    def _forget(self) -> None:
        """A connection that takes no new requests; those under way end by themselves."""
        if self._connection is not None:
            self._past.received += self._connection.bytes_received
            self._past.sent += self._connection.bytes_sent
            self._connection = None

    async def _check(self, response: Response) -> None:
        """Raises StatusError for all but success, after reading what it says."""
        if response.status == 200:
            self._server_errors = 0
            return
        error = await self._refusal(response)
        if isinstance(error, Unauthorized):
            await anyio.to_thread.run_sync(self._access.reload)
        self._server_errors = self._server_errors + 1 if error.code >= 500 else 0
        if self._server_errors >= SERVER_ERRORS and len(self.servers.known) > 1:
            self._server_errors = 0
            if self._connection is not None:
                self._connection.close()
                self._failed(self._connection)
        try:
            raise error
        finally:
            del error  # a frame that refers to its exception is a cycle, and keeps its callers

    async def _refusal(self, response: Response) -> StatusError:
        body = b""
        # The status is known without its explanation.
        with contextlib.suppress(TimeoutError, Garbage):
            with anyio.fail_after(self.limits.request_timeout_s):
                body = await response.body(MOST_ERROR_BYTES)
        return refusal(response.status, body, response.headers.get("retry-after", ""))


def refusal(status: int, body: bytes, retry_after: str) -> StatusError:
    """The error that an answer other than success means."""
    try:
        message = msgspec.json.decode(body, type=_Status).message
    except msgspec.DecodeError:
        message = body[:ERROR_SHOWN].decode("utf-8", "replace")
    return status_error(status, message, retry_after_s(retry_after, time.time()))


def retry_after_s(text: str, now: float) -> float:
    """Seconds that a Retry-After header asks to wait (a number, or a date); 0 for none.

    At most `LONGEST_RETRY_AFTER_S`: what answers for a server that is away may ask for a day.

    >>> retry_after_s("3", 0.0), retry_after_s("", 0.0), retry_after_s("soon", 0.0)
    (3.0, 0.0, 0.0)
    >>> retry_after_s("86400", 0.0), retry_after_s("Fri, 31 Dec 9999 23:59:59 GMT", 0.0)
    (10.0, 10.0)
    """
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_RETRY_AFTER_S)
    try:
        asked_s = email.utils.parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(0.0, asked_s), LONGEST_RETRY_AFTER_S)

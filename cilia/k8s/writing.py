# SPDX-License-Identifier: Apache-2.0
"""Writes to an API server, by the `kubernetes` package's client; reading stays `client`'s.

    write -> answer                              done, or refused
          -> no connection                       not written; the next request tries elsewhere
          -> answer lost -> read the object  --> in force: done
                                             --> not in force: written once more

Each write names the version that it changes, or says all of what it wants (create, apply, merge,
delete by uid), so that a second one does no harm. The package's own retries are off, since it knows
nothing of this. Its calls block, so they run in a few threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple

import anyio
import msgspec
import structlog
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

import cilia
from cilia.k8s.access import Access
from cilia.k8s.api_servers import Server, Servers
from cilia.k8s.client import JSON, Client, Limits, refusal
from cilia.k8s.endings import Ending, make_endable
from cilia.k8s.errors import (
    ApiError,
    ConnectionLost,
    Garbage,
    StatusError,
    Unauthorized,
    Unreachable,
)
from cilia.k8s.http2 import MOST_BODY_BYTES
from cilia.k8s.threads import Threads
from cilia.k8s.written import Form, contains, is_deleted, without_version

__all__ = ["WritingClient"]

log = structlog.get_logger("k8s")

# Content types of a PATCH: server-side apply (JSON is YAML), and RFC 7386.
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
NOT_FOUND: Final = 404
# Writes under way at once.
THREADS: Final = 4
# Of the time that a caller gives, what a socket may use up: its error then says more than a
# cancellation, and its thread ends.
SHARE_OF_TIME: Final = 0.9

Query = Mapping[str, str]


class _Write(NamedTuple):
    """`path` is that of the object. `in_force` judges an object that was read (None: there is none)
    after the answer was lost; it returns what the answer would have been, or None."""

    method: str
    path: str
    body: Any
    in_force: Callable[[Form | None], Form | None]
    content_type: str = JSON
    query: Query = MappingProxyType({})

    @property
    def target(self) -> str:
        """What the request names: to create an object, its collection."""
        return self.path.rpartition("/")[0] if self.method == "POST" else self.path


class _Answer(NamedTuple):
    status: int
    retry_after: str
    body: bytes


class WritingClient(Client):
    """A client that also writes. A type of its own: who is given a `Client` can only read. A
    context, left once the writes under way have ended.

    Methods return the object as it is in force, and raise

        Unreachable: it was not written.
        ConnectionLost: it may have been written, also after a second try.
        StatusError: it was refused.
    """

    def __init__(self, access: Access, servers: Servers, limits: Limits | None = None) -> None:
        super().__init__(access, servers, limits)
        self._threads = Threads(THREADS)
        self._api: tuple[Server, object, ApiClient] | None = None
        self._reread = False

    async def __aenter__(self) -> WritingClient:
        await self._threads.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._threads.__aexit__(kind, error, traceback)
        finally:
            self._drop()
            await self.close()

    async def create(self, path: str, form: Form) -> Form:
        """Make the object of this path; 409 if there is another one."""
        return await self._write(_Write("POST", path, form, partial(_holds, form)))

    async def replace(self, path: str, form: Form) -> Form:
        """Write the object over the version that it names; 409 if that is not the last one."""
        return await self._write(_Write("PUT", path, form, partial(_holds, without_version(form))))

    async def apply(self, path: str, form: Form, query: Query) -> Form:
        """Server-side apply, by the field manager of the query."""
        return await self._write(_Write("PATCH", path, form, partial(_holds, form), APPLY, query))

    async def merge(self, path: str, patch: Form) -> Form:
        """Set what the patch names, and remove what is None in it (RFC 7386)."""
        return await self._write(_Write("PATCH", path, patch, partial(_holds, patch), MERGE))

    async def delete(self, path: str, uid: str, options: Form, version: str = "") -> Form:
        """Delete this object, not one that has its name since; 404 if there is none.

        `options` are fields of DeleteOptions: with a body the server takes none from the query.
        `version`: only if this is its last one, else 409.
        """
        preconditions = {"uid": uid, **({"resourceVersion": version} if version else {})}
        body = {**options, "preconditions": preconditions}
        return await self._write(_Write("DELETE", path, body, partial(is_deleted, uid)))

    async def _write(self, write: _Write) -> Form:
        try:
            return await self._send(write)
        except ConnectionLost as lost:
            log.warning("the answer to a write was lost", path=write.path, error=str(lost))
            form = write.in_force(await self._read_after(write, lost))
        return await self._send(write) if form is None else form

    async def _read_after(self, write: _Write, lost: ConnectionLost) -> Form | None:
        """Read the object. Raises ConnectionLost: nobody can tell what became of the write."""
        try:
            return _decoded(await self.fetch(write.path))
        except StatusError as error:
            if error.code == NOT_FOUND:
                return None
            reason: ApiError = error
        except ApiError as error:
            reason = error
        raise ConnectionLost(f"{lost}, and it cannot be read: {reason}") from None

    async def _send(self, write: _Write) -> Form:
        await self._bucket.take()
        server, api = await self._opened()
        ending = Ending()
        try:
            with anyio.fail_after(self.limits.request_timeout_s):
                left_s = anyio.current_effective_deadline() - anyio.current_time()
                timeouts = self._timeouts(left_s * SHARE_OF_TIME)
                exchange = partial(_exchange, api, self._access, write, timeouts, ending)
                answer = await self._threads.run(exchange)
        except TimeoutError:
            self._broken(server)
            limit_s = self.limits.request_timeout_s
            raise ConnectionLost(
                f"{write.method} {write.path}: no answer in {limit_s:g} s"
            ) from None
        except (Unreachable, ConnectionLost):
            self._broken(server)
            raise
        finally:
            ending.end()
        if 200 <= answer.status < 300:
            return _decoded(answer.body)
        raise self._refused_by(answer)

    def _refused_by(self, answer: _Answer) -> StatusError:
        error = refusal(answer.status, answer.body, answer.retry_after)
        if isinstance(error, Unauthorized):
            self._reread = True
            self._drop()
        return error

    def _timeouts(self, left_s: float) -> tuple[float, float]:
        """To connect, and for each wait for bytes of the answer."""
        return min(self.limits.connect_timeout_s, left_s), left_s

    async def _opened(self) -> tuple[Server, ApiClient]:
        """The package's client for the server in use, with credentials and addresses as they are
        now: they are read again after each failure."""
        if self._reread:
            self._reread = False
            await self._read_access_again()
        server, settings = self.servers.current, self._access.settings
        if self._api is not None and self._api[:2] == (server, settings):
            return server, self._api[2]
        self._drop()
        api = ApiClient(self._access.configuration(str(server)))
        api.user_agent = f"cilia/{cilia.__version__}"
        make_endable(api)
        self._api = (server, settings, api)
        return server, api

    def _broken(self, server: Server) -> None:
        """A server that lost its connection is the last to be tried again."""
        self.servers.failed(server)
        self._reread = True
        self._drop()

    def _drop(self) -> None:
        """Close idle connections; those under way are closed by their threads."""
        if self._api is not None:
            self._api[2].close()
            self._api = None


def _exchange(
    api: ApiClient, access: Access, write: _Write, timeouts: tuple[float, float], ending: Ending
) -> _Answer:
    """One request and its answer; blocks, until it is ended at the longest.

    Raises:
        Unreachable: it was not sent.
        ConnectionLost: it may have been.
        AccessError: there are no credentials to show.
    """
    headers = dict(access.headers()) | {"Accept": JSON, "Content-Type": write.content_type}
    request = api.param_serialize(
        write.method,
        write.target,
        query_params=list(write.query.items()),
        header_params=headers,
        body=write.body,
    )
    what = f"{write.method} {write.path}"
    try:
        with ending.of_this_thread():
            response = api.call_api(*request, _request_timeout=timeouts).response
            try:
                body = response.read(MOST_BODY_BYTES)
                return _Answer(response.status, response.headers.get("retry-after", ""), body)
            finally:
                response.release_conn()
    except (NewConnectionError, ConnectTimeoutError) as error:
        raise Unreachable(f"{what}: {error}") from None
    except (HTTPError, ApiException, OSError) as error:
        raise ConnectionLost(f"{what}: {error}") from None


def _holds(form: Form, found: Form | None) -> Form | None:
    return found if found is not None and contains(found, form) else None


def _decoded(body: bytes) -> Form:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Garbage(f"the answer to a write is no object: {error}") from None

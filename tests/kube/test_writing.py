# SPDX-License-Identifier: Apache-2.0
"""Writes to a real API server, over a path that is cut before or after one of them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream

from cilia.cli.install.objects import Done
from cilia.cli.install.objects import apply as apply_objects
from cilia.cli.install.objects import delete as delete_objects
from cilia.k8s.access import Access
from cilia.k8s.api_servers import Servers, parse_server
from cilia.k8s.client import Limits
from cilia.k8s.errors import ConnectionLost, StatusError, Unreachable
from cilia.k8s.writing import THREADS, WritingClient

from .apiserver import ApiServer

pytestmark = pytest.mark.timeout(90)

Form = dict[str, Any]
Write = Callable[[WritingClient, str, Form], Awaitable[Form]]
InstallerStep = Callable[..., Awaitable[Done]]
APPLIED = {"fieldManager": "test", "force": "true"}


class CutPath:
    """Takes plain connections and makes them to the API server by TLS.

    `cuts` has one word for each write to come: `before`, it is read and not passed on; `after`, it
    is passed on and its answer is not passed back. The connection is closed then. `drip`: a byte
    of the answer now and then is all that is passed back. `writes` counts those that came.
    """

    def __init__(self, server: ApiServer) -> None:
        self.cuts: list[str] = []
        self.writes = 0
        self._upstream = server.port

    async def take(self, below: ByteStream) -> None:
        async with below:
            begin = await below.receive()
            reading = begin.startswith(b"PRI ")
            async with await self._above("h2" if reading else "http/1.1") as above:
                if reading:
                    await above.send(begin)
                    async with anyio.create_task_group() as group:
                        group.start_soon(_pass, below, above, group.cancel_scope)
                        group.start_soon(_pass, above, below, group.cancel_scope)
                else:
                    with contextlib.suppress(anyio.EndOfStream, anyio.IncompleteRead):
                        await self._requests(begin, below, above)

    async def _above(self, protocol: str) -> ByteStream:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        return await anyio.connect_tcp(
            "127.0.0.1",
            self._upstream,
            ssl_context=context,
            tls_standard_compatible=False,
        )

    async def _requests(self, begin: bytes, below: ByteStream, above: ByteStream) -> None:
        """One request and its answer after the other."""
        requests, answers = BufferedByteReceiveStream(below), BufferedByteReceiveStream(above)
        requests.feed_data(begin)
        while True:
            request = await _message(requests)
            self.writes += 1
            cut = self.cuts.pop(0) if self.cuts else ""
            if cut == "before":
                return
            await above.send(request)
            answer = await _message(answers)
            if cut == "after":
                return
            if cut == "drip":
                with contextlib.suppress(anyio.BrokenResourceError):
                    for byte in answer:
                        await below.send(bytes([byte]))
                        await anyio.sleep(0.1)  # the server's slowness
                return
            await below.send(answer)


async def _message(stream: BufferedByteReceiveStream) -> bytes:
    """A request or an answer of HTTP/1.1, whole."""
    head = await stream.receive_until(b"\r\n\r\n", 1 << 16)
    body = b""
    if _field(head, b"transfer-encoding") == b"chunked":
        body = await stream.receive_until(b"0\r\n\r\n", 1 << 20) + b"0\r\n\r\n"
    elif length := int(_field(head, b"content-length") or 0):
        body = await stream.receive_exactly(length)
    return head + b"\r\n\r\n" + body


def _field(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


async def _pass(source: ByteStream, target: ByteStream, scope: anyio.CancelScope) -> None:
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await target.send(await source.receive())
    scope.cancel()


class World:
    """A client on such a path, in a namespace of its own."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.path = CutPath(server)
        self.server = server
        self.base = f"/api/v1/namespaces/{namespace}/configmaps"
        self.client: WritingClient

    def found(self, name: str) -> Form | None:
        status, _ = self.server.request("GET", f"{self.base}/{name}")
        return self.server.get(f"{self.base}/{name}") if status == 200 else None

    @asynccontextmanager
    async def running(self, limits: Limits | None = None) -> AsyncIterator[None]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        servers = Servers([parse_server(f"http://127.0.0.1:{port}")])
        limits = limits or Limits(qps=1e6, burst=1000)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self.path.take)
            async with WritingClient(Access(self.server.kubeconfig), servers, limits) as client:
                self.client = client
                yield
            group.cancel_scope.cancel()


@pytest.fixture
def world(api_server: ApiServer, namespace: str) -> World:
    return World(api_server, namespace)


def form(value: str, **metadata: str) -> Form:
    named = {"name": "one", **metadata}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": {"key": value}}


async def create(client: WritingClient, path: str, found: Form) -> Form:
    other = form("new") | {"metadata": {"name": "two"}}
    return await client.create(f"{path.rpartition('/')[0]}/two", other)


async def replace(client: WritingClient, path: str, found: Form) -> Form:
    return await client.replace(path, found | {"data": {"key": "new"}})


async def apply(client: WritingClient, path: str, found: Form) -> Form:
    return await client.apply(path, form("new"), APPLIED)


async def merge(client: WritingClient, path: str, found: Form) -> Form:
    return await client.merge(path, {"data": {"key": "new", "gone": None}})


async def delete(client: WritingClient, path: str, found: Form) -> Form:
    return await client.delete(path, found["metadata"]["uid"], {"propagationPolicy": "Background"})


WRITES = [create, replace, apply, merge, delete]


@pytest.mark.parametrize("cut", ["", "before", "after"])
@pytest.mark.parametrize("write", WRITES)
async def test_each_write_is_carried_out_once_where_its_path_is_cut(
    world: World, write: Write, cut: str
) -> None:
    found = world.server.post(world.base, form("old"))
    if cut:
        world.path.cuts = [cut]
    async with world.running():
        written = await write(world.client, f"{world.base}/one", found)
    name = "two" if write is create else "one"
    now = world.found(name)
    if write is delete:
        assert now is None
    else:
        assert now is not None and now["data"] == {"key": "new"}
        version = now["metadata"]["resourceVersion"]
        assert written["metadata"]["resourceVersion"] == version, "the answer is what is in force"
    # What was carried out is not written again.
    assert world.path.writes == (2 if cut == "before" else 1)


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_whose_answer_is_lost_twice_says_so(world: World, write: Write) -> None:
    found = world.server.post(world.base, form("old"))
    world.path.cuts = ["before", "before"]
    async with world.running():
        with pytest.raises(ConnectionLost):
            await write(world.client, f"{world.base}/one", found)
    assert world.path.writes == 2
    now = world.found("one")
    assert now is not None and now["data"] == {"key": "old"}


async def test_an_answer_without_end_keeps_no_thread(world: World) -> None:
    """Each one is given up when its time is over, and later writes find a thread."""
    found = world.server.post(world.base, form("old"))
    world.path.cuts = ["drip"] * THREADS
    async with world.running(Limits(qps=1e6, burst=1000, request_timeout_s=0.5)):
        with anyio.fail_after(10):
            for number in range(THREADS):
                found = await merge(world.client, f"{world.base}/one", found)
                assert found["data"] == {"key": "new"}, number
            await world.client.merge(f"{world.base}/one", {"data": {"key": "last"}})
    assert world.path.writes == THREADS + 1


@pytest.mark.parametrize("write", [create, replace])
async def test_what_another_wrote_meanwhile_is_a_conflict(world: World, write: Write) -> None:
    """The answer is lost, and what is read is another writer's."""
    found = world.server.post(world.base, form("old"))
    world.path.cuts = ["before"]
    theirs = form("theirs")
    if write is create:
        world.server.post(world.base, theirs | {"metadata": {"name": "two"}})
    else:
        world.server.patch(f"{world.base}/one", {"data": {"key": "theirs"}})
    async with world.running():
        with pytest.raises(StatusError) as refused:
            await write(world.client, f"{world.base}/one", found)
    assert refused.value.code == 409
    now = world.found("two" if write is create else "one")
    assert now is not None and now["data"] == {"key": "theirs"}


@pytest.mark.parametrize("cut", ["", "before", "after"])
@pytest.mark.parametrize("writes", [apply_objects, delete_objects])
async def test_a_dry_run_of_the_installer_changes_nothing(
    world: World, writes: InstallerStep, cut: str
) -> None:
    found = world.server.post(world.base, form("old"))
    before = world.found("one")
    world.path.cuts = [cut] if cut else []
    wanted = form("new", namespace=found["metadata"]["namespace"])
    async with world.running():
        await writes(world.client, wanted, dry_run=True)
    assert world.found("one") == before


@pytest.mark.parametrize("cut", ["", "before", "after"])
async def test_what_the_installer_deletes_goes_after_what_belongs_to_it(
    world: World, cut: str
) -> None:
    """Nobody collects here, so that the object is seen to wait."""
    found = world.server.post(world.base, form("old"))
    world.path.cuts = [cut] if cut else []
    async with world.running():
        named = form("old", namespace=found["metadata"]["namespace"])
        done = await delete_objects(world.client, named, dry_run=False)
    assert done is Done.DELETED
    now = world.found("one")
    assert now is not None and now["metadata"]["finalizers"] == ["foregroundDeletion"]


async def test_a_successor_of_the_same_name_is_not_deleted(world: World) -> None:
    found = world.server.post(world.base, form("old"))
    world.server.request("DELETE", f"{world.base}/one")
    world.server.post(world.base, form("successor"))
    async with world.running():
        with pytest.raises(StatusError) as refused:
            await delete(world.client, f"{world.base}/one", found)
    assert refused.value.code == 409
    assert world.found("one") is not None


async def test_a_token_that_was_replaced_is_read_again(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    api_server.write_kubeconfig(kubeconfig, "of-yesterday")
    path = f"/api/v1/namespaces/{namespace}/configmaps/one"
    servers = Servers([parse_server(api_server.url)])
    async with WritingClient(Access(kubeconfig), servers) as client:
        with pytest.raises(StatusError, match="401"):
            await client.create(path, form("new"))
        api_server.write_kubeconfig(kubeconfig, api_server.tokens["admin"])
        with contextlib.suppress(StatusError):
            await client.create(path, form("new"))
        assert (await client.apply(path, form("again"), APPLIED))["data"] == {"key": "again"}


async def test_the_next_write_goes_to_the_next_server(
    api_server: ApiServer, namespace: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"https://127.0.0.1:{gone.getsockname()[1]}"
    servers = Servers([parse_server(url), parse_server(api_server.url)])
    path = f"/api/v1/namespaces/{namespace}/configmaps/one"
    async with WritingClient(Access(api_server.kubeconfig), servers) as client:
        with pytest.raises(Unreachable):
            await client.create(path, form("new"))
        assert (await client.create(path, form("new")))["data"] == {"key": "new"}

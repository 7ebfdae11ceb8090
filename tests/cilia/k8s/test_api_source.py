# SPDX-License-Identifier: Apache-2.0
"""The source over an API server in this process: what readers are told, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cilia.cluster.k8s_watches import convert_watch
from cilia.k8s import resource_watch, watch_retry
from cilia.k8s.access import Access
from cilia.k8s.api_servers import Server, Servers, parse_server
from cilia.k8s.api_source import ApiSource
from cilia.k8s.change_time import TRIGGER, TimeSource
from cilia.k8s.client import Client, Limits
from cilia.k8s.errors import AccessError
from cilia.k8s.object_events import ObjectEvents
from cilia.k8s.objects import EndpointSlice, K8sObject, Service
from cilia.k8s.resource import Resource
from cilia.k8s.resource_watch import Options
from cilia.k8s.watch import Delete, Event, Invalid, Listed, Listing, Unread, Upsert
from cilia.k8s.watch_state import Anomaly, State
from tests.cilia.k8s.fake_api import FakeApi
from tests.cilia.k8s.forms import service_form, slice_form
from tests.cilia.k8s.reader import Reader

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
FAST = Limits(ping_s=0.25, heartbeat_timeout_s=1.0, connect_timeout_s=1.0, qps=1e6, burst=1000)


class World:
    """A server, a source that reads it, and what of both a test wants to see."""

    def __init__(self) -> None:
        self.api = FakeApi(SERVICES, SLICES)
        self.tasks: list[asyncio.Task[Any]] = []
        self.sources: list[ApiSource] = []

    def source(
        self,
        *urls: str,
        access: Access | None = None,
        limits: Limits = FAST,
        **options: Any,
    ) -> ApiSource:
        servers = Servers([parse_server(url) for url in urls or [self.api.server.url]])
        client = Client(access or Access(anonymous=True), servers, limits)
        resources = [Resource(Service), Resource(EndpointSlice)]
        source = ApiSource(client, resources, Options(**{"page_size": 2, **options}))
        self.sources.append(source)
        return source

    def read(self, source: ApiSource, *kinds: type[K8sObject]) -> Reader:
        reader = Reader(source, *kinds)
        self.tasks.append(reader.task)
        return reader

    def run(self, source: ApiSource) -> None:
        self.tasks.append(asyncio.create_task(source.run()))

    async def following(self, kind: type[K8sObject], *names: str) -> tuple[ApiSource, Reader]:
        """A source that follows its server, and a reader that was told these objects."""
        source = self.source()
        reader = self.read(source, kind)
        self.run(source)
        await reader.names(*names)
        await self.watching(source)
        return source, reader

    async def watching(self, source: ApiSource) -> None:
        await until(lambda: all(w.state.state is State.WATCHING for w in source.watches.values()))

    def watches_of(self, path: str) -> list[dict[str, str]]:
        return [r.query for r in self.api.requests if r.path == path and "watch" in r.query]

    def lists_of(self, path: str) -> list[dict[str, str]]:
        """Without those of proofs."""
        return [
            r.query
            for r in self.api.requests
            if r.path == path and "watch" not in r.query and "Partial" not in r.headers["accept"]
        ]


async def until(condition: Callable[[], bool]) -> None:
    """For what nobody announces."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.api.start()
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    await world.api.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are not what is tested here."""
    monkeypatch.setattr(watch_retry, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(watch_retry, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(resource_watch, "ABSENT_S", 0.2)


async def test_what_a_failure_kept_from_readers_comes_with_the_next_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.api.put(SERVICES, service_form("a"))
    source = world.source()
    reader = world.read(source, Service)
    failing = asyncio.create_task(source.run())
    await reader.names("a")
    await world.watching(source)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(ObjectEvents, "of_object", fail)
    world.api.put(SERVICES, service_form("b"))
    with pytest.raises(ExceptionGroup):
        await failing
    monkeypatch.undo()
    world.run(source)
    await reader.names("a", "b")


async def test_list_comes_in_pages_and_then_changes(world: World) -> None:
    for i in range(5):
        world.api.put(SERVICES, service_form(f"s{i}"))
    source = world.source()
    reader = world.read(source, Service)
    world.run(source)
    events = await reader.listed()
    assert [type(e) for e in events] == [Listing, *[Upsert] * 5, Listed]
    assert len(world.lists_of(SERVICES)) == 3
    await world.watching(source)
    world.api.put(SERVICES, service_form("new"))
    world.api.delete(SERVICES, "test", "s1")
    await reader.names("s0", "s2", "s3", "s4", "new")
    assert len(world.lists_of(SERVICES)) == 3


async def test_pages_of_a_list_are_one_request_to_the_rate_limit(world: World) -> None:
    names = [f"s{i}" for i in range(20)]
    for name in names:
        world.api.put(SERVICES, service_form(name))
    source = world.source(limits=msgspec.structs.replace(FAST, qps=0.1, burst=4))
    reader = world.read(source, Service)
    world.run(source)
    await reader.names(*names)
    await world.watching(source)
    assert len(world.lists_of(SERVICES)) == 10


async def test_one_watch_a_resource_on_one_connection_however_many_readers(world: World) -> None:
    world.api.put(SERVICES, service_form("s"))
    source = world.source()
    readers = [world.read(source, Service) for _ in range(4)]
    world.run(source)
    for reader in readers:
        await reader.names("s")
    await world.watching(source)
    assert len(world.watches_of(SERVICES)) == 1
    assert len(world.api.server.connections) == 1


async def test_late_reader_gets_everything_and_the_others_lose_nothing(world: World) -> None:
    world.api.put(SERVICES, service_form("a"))
    source = world.source()
    first = world.read(source, Service)
    world.run(source)
    await first.names("a")
    await world.watching(source)
    late = world.read(source, Service)
    events = await late.listed()
    assert isinstance(events[0], Listing)
    await world.watching(source)
    world.api.put(SERVICES, service_form("b"))
    await first.names("a", "b")
    await late.names("a", "b")


async def test_watch_that_ends_goes_on_from_its_last_revision(world: World) -> None:
    world.api.put(SERVICES, service_form("a"))
    world.api.watch_s = 0.3
    source = world.source()
    reader = world.read(source, Service)
    world.run(source)
    await reader.names("a")
    revision = world.api.put(SERVICES, service_form("b"))
    await reader.names("a", "b")
    await until(lambda: len(world.watches_of(SERVICES)) >= 3)
    assert len(world.lists_of(SERVICES)) == 1
    assert world.watches_of(SERVICES)[-1]["resourceVersion"] == str(revision)
    assert source.watches["Service"].state.repairs == {}


async def test_bookmark_moves_the_revision_to_go_on_from(world: World) -> None:
    world.api.bookmark_s = 0.1
    world.api.watch_s = 0.5
    source = world.source()
    world.read(source, Service)
    world.run(source)
    await world.watching(source)
    revision = world.api.put(SLICES, slice_form())
    await until(lambda: world.watches_of(SERVICES)[-1]["resourceVersion"] == str(revision))
    assert len(world.lists_of(SERVICES)) == 1


async def test_expired_revision_is_a_list_of_which_only_differences_are_told(world: World) -> None:
    for name in ("same", "changes", "goes"):
        world.api.put(SERVICES, service_form(name))
    source = world.source()
    reader = world.read(source, Service)
    world.run(source)
    await reader.listed()
    await world.watching(source)
    await world.api.stop()
    told = len(reader.events)
    world.api.put(SERVICES, service_form("changes", ip="10.96.0.9"))
    world.api.put(SERVICES, service_form("comes"))
    world.api.delete(SERVICES, "test", "goes")
    world.api.expire()
    await world.api.start()
    await reader.names("same", "changes", "comes")
    names = [
        event.obj.metadata.name if isinstance(event, Upsert) else "-"
        for event in reader.events[told:]
    ]
    assert sorted(names) == ["-", "changes", "comes"]
    state = source.watches["Service"].state
    assert state.anomalies == {Anomaly.GONE: 1}
    assert state.repairs == {
        ("gone", "added"): 1,
        ("gone", "changed"): 1,
        ("gone", "deleted"): 1,
    }
    # Real changes, though they came by a list.
    assert all(e.changed for e in reader.events[told:] if isinstance(e, Upsert | Delete))


async def test_list_whose_pages_expire_is_begun_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        world.api.put(SERVICES, service_form(f"s{i}"))
    pages = 0
    handle = world.api.server.handler

    async def expiring(request: Any, reply: Any) -> None:
        nonlocal pages
        if request.path == SERVICES and "continue" in request.query:
            pages += 1
            if pages == 2:  # of the first list, the last page
                world.api.delete(SERVICES, "test", "s0")
                world.api.expire()
        await handle(request, reply)

    world.api.server.handler = expiring
    source = world.source()
    reader = world.read(source, Service)
    world.run(source)
    await reader.listed()
    assert reader.held() == {"s1", "s2", "s3", "s4", "s5"}


async def test_list_goes_on_where_its_connection_was_lost(world: World) -> None:
    names = [f"s{i}" for i in range(8)]
    for name in names:
        world.api.put(SERVICES, service_form(name))
    asked: list[str] = []
    handle = world.api.server.handler

    async def losing(request: Any, reply: Any) -> None:
        if request.path == SERVICES and "watch" not in request.query:
            asked.append(request.query.get("continue", ""))
            if asked.count(asked[-1]) == 1 and len(asked) in (2, 5):
                reply.connection.cut()
                return
        await handle(request, reply)

    world.api.server.handler = losing
    source = world.source()
    reader = world.read(source, Service)
    world.run(source)
    await reader.names(*names)
    await world.watching(source)
    lists = asked[: asked.index("", 1)] if "" in asked[1:] else asked
    assert len(lists) == 6 and lists[1] == lists[2] and lists[4] == lists[5], (
        "four pages, two again"
    )
    assert source.watches["Service"].state.errors == 2


async def test_list_without_an_answer_is_told_as_unread_long_before_it_fails(world: World) -> None:
    """Others go on without it; its row says why from the first time-out on."""
    world.api.put(SLICES, slice_form("a-1", service="a"))
    world.api.silent.add(SLICES)
    limits = msgspec.structs.replace(FAST, request_timeout_s=0.6)
    source = world.source(limits=limits, slow_list_s=0.05)
    reader = world.read(source, EndpointSlice)
    world.run(source)
    state = source.watches["EndpointSlice"].state
    await reader.until(lambda events: Unread("EndpointSlice") in events)
    assert state.errors == 0
    await until(lambda: state.errors > 0 and state.state is State.LISTING)
    assert "no complete answer" in convert_watch(state).error
    world.api.silent.clear()
    await reader.listed()
    await reader.names("a-1")
    await until(lambda: convert_watch(state).error == "")


async def test_refused_token_is_read_again(world: World, tmp_path: Path) -> None:
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("old")
    ca.write_text("unused: the server speaks no TLS")
    world.api.token = "old"
    world.api.put(SERVICES, service_form("a"))
    source = world.source(access=Access(token_file=token, ca_file=ca))
    reader = world.read(source, Service)
    world.run(source)
    await reader.names("a")
    world.api.token = "new"
    for connection in list(world.api.server.connections):
        connection.cut()
    await until(lambda: "401" in source.watches["Service"].state.error)
    token.write_text("new")
    world.api.put(SERVICES, service_form("b"))
    await reader.names("a", "b")


async def test_resource_that_is_not_there_is_empty_until_it_appears(world: World) -> None:
    world.api.remove_resource(SLICES)
    source = world.source()
    reader = world.read(source, EndpointSlice)
    world.run(source)
    await reader.listed()
    assert source.watches["EndpointSlice"].state.state is State.ABSENT
    world.api.put(SLICES, slice_form("s"))
    await reader.names("s")
    await world.watching(source)
    world.api.remove_resource(SLICES)
    await reader.names()


@pytest.mark.parametrize("path", [SERVICES, SLICES])
@pytest.mark.parametrize("paths", ["this", "all"])
async def test_not_found_from_another_than_the_api_server_removes_nothing(
    world: World, path: str, paths: str
) -> None:
    """A load balancer before the API server answers 404 to what it does not know."""
    world.api.put(SERVICES, service_form("a"))
    world.api.put(SLICES, slice_form("s"))
    kind, name = (Service, "a") if path == SERVICES else (EndpointSlice, "s")
    source, reader = await world.following(kind, name)
    world.api.not_found = {path} if paths == "this" else None
    for connection in list(world.api.server.connections):
        connection.cut()
    await until(lambda: "404" in source.watches[kind.KIND].state.error)
    assert source.watches[kind.KIND].state.state is not State.ABSENT
    assert reader.held() == {name}
    world.api.not_found = set()
    await world.watching(source)
    assert reader.held() == {name}


@pytest.mark.parametrize("lie", ["PodList", "List", "endless"])
async def test_list_that_is_none_of_the_resource_removes_nothing(world: World, lie: str) -> None:
    world.api.put(SERVICES, service_form("a"))
    source, reader = await world.following(Service, "a")
    world.api.list_kind = "" if lie == "endless" else lie
    world.api.always_more = lie == "endless"
    world.api.expire()
    for connection in list(world.api.server.connections):
        connection.cut()
    text = "do not end" if lie == "endless" else f"a {lie}, not a"
    await until(lambda: text in source.watches["Service"].state.error)
    assert reader.held() == {"a"}
    world.api.list_kind, world.api.always_more = "", False
    world.api.put(SERVICES, service_form("b"))
    await reader.names("a", "b")


async def test_object_of_another_kind_in_a_stream_is_refused(world: World) -> None:
    world.api.put(SERVICES, service_form("a"))
    source, reader = await world.following(Service, "a")
    world.api.put(SERVICES, {**service_form("b"), "kind": "Pod"})
    await until(lambda: "a Pod among services" in source.watches["Service"].state.error)
    assert reader.held() == {"a"}


async def test_refused_object_is_a_problem_until_it_is_right_or_gone(world: World) -> None:
    world.api.put(SERVICES, service_form("a"))
    source = world.source()
    reader, problems = world.read(source, Service), world.read(source)
    world.run(source)
    await reader.names("a")
    await problems.listed()
    await world.watching(source)
    world.api.put(SERVICES, service_form("a", ip="nonsense"))
    await problems.until(lambda events: isinstance(events[-1], Invalid))
    refused = problems.events[-1]
    assert isinstance(refused, Invalid)
    assert [p.field for p in refused.problems] == ["spec.clusterIP"]
    # What was in force stays, and a proof has nothing against it.
    assert reader.held() == {"a"}
    world.api.put(SERVICES, service_form("a"))
    await problems.until(lambda events: events[-1] == Invalid("api:Service:test/a"))


async def test_server_that_is_busy_is_asked_again_when_it_said(world: World) -> None:
    refused: list[float] = []
    handle = world.api.server.handler

    async def busy(request: Any, reply: Any) -> None:
        if request.path == SERVICES and not refused:
            refused.append(time.monotonic())
            await reply.whole(429, b"{}", {"retry-after": "1"})
        else:
            await handle(request, reply)

    world.api.server.handler = busy
    source = world.source()
    reader = world.read(source, Service)
    world.run(source)
    await reader.listed()
    assert time.monotonic() - refused[0] >= 1.0


async def test_next_server_is_used_when_the_first_is_gone(world: World) -> None:
    other = FakeApi(SERVICES, SLICES)
    await other.start()
    for api in (world.api, other):
        api.put(SERVICES, service_form("a"))
    source = world.source(world.api.server.url, other.server.url)
    reader = world.read(source, Service)
    world.run(source)
    await reader.names("a")
    await world.watching(source)
    await world.api.stop()
    other.put(SERVICES, service_form("b"))
    await reader.names("a", "b")
    assert source.watches["Service"].state.server == other.server.url
    await other.stop()


async def test_silent_server_is_left_within_the_heartbeat(world: World) -> None:
    source = world.source()
    world.read(source, Service)
    world.run(source)
    await world.watching(source)
    started = time.monotonic()
    for connection in world.api.server.connections:
        connection.frozen = True
    await until(lambda: source.watches["Service"].state.errors > 0)
    assert "nothing came" in source.watches["Service"].state.error
    assert time.monotonic() - started < FAST.heartbeat_timeout_s + 1.0
    await world.watching(source)


async def test_silent_but_living_connection_is_kept(world: World) -> None:
    source = world.source()
    world.read(source, Service)
    world.run(source)
    await world.watching(source)
    await asyncio.sleep(2 * FAST.heartbeat_timeout_s)
    assert source.client.connects == 1
    assert source.watches["Service"].state.errors == 0


async def test_lost_delete_is_found_by_the_proof(world: World) -> None:
    world.api.put(SERVICES, service_form("a"))
    world.api.put(SERVICES, service_form("b"))
    source = world.source(proof_interval_s=0.3)
    reader = world.read(source, Service)
    world.run(source)
    await reader.names("a", "b")
    await world.watching(source)
    del world.api._resources[SERVICES].objects["test", "a"]  # and nobody is told
    world.api.revision += 1
    await reader.names("b")
    state = source.watches["Service"].state
    assert state.repairs == {("proof", "deleted"): 1}
    assert state.anomalies == {Anomaly.MISSED: 1}


async def test_proof_of_what_is_right_costs_no_list(world: World) -> None:
    world.api.put(SERVICES, service_form("a"))
    source = world.source(proof_interval_s=0.1)
    world.read(source, Service)
    world.run(source)
    await until(lambda: source.watches["Service"].state.proofs >= 4)
    assert len(world.lists_of(SERVICES)) == 1
    assert source.watches["Service"].state.proof_bytes > 0


async def test_trigger_time_counts_for_the_first_version_that_has_it(world: World) -> None:
    def put(addresses: tuple[str, ...], trigger: str) -> None:
        form = slice_form("s", addresses=addresses)
        form["metadata"]["annotations"] = {TRIGGER: trigger}
        form["metadata"]["managedFields"] = [{"time": "2026-01-01T00:00:09Z"}]
        world.api.put(SLICES, form)

    put(("10.1.0.1",), "2026-01-01T00:00:01Z")
    source = world.source()
    reader = world.read(source, EndpointSlice)
    world.run(source)
    await reader.listed()
    await world.watching(source)
    put(("10.1.0.2",), "2026-01-01T00:00:01Z")  # changed by something else
    put(("10.1.0.3",), "2026-01-01T00:00:05.5Z")
    world.api.delete(SLICES, "test", "s")
    await reader.names()
    sources = [
        e.changed and e.changed.source for e in reader.events if isinstance(e, Upsert | Delete)
    ]
    assert sources == [None, TimeSource.MANAGED_FIELDS, TimeSource.TRIGGER, TimeSource.ARRIVAL]


def test_last_known_servers_outlive_the_process_in_a_private_file(tmp_path: Path) -> None:
    kept = tmp_path / "api-servers.json"
    servers = Servers([parse_server("https://10.0.0.1:6443")], kept)
    labels = {"kubernetes.io/service-name": "kubernetes"}
    slice_ = EndpointSlice.model_validate(
        {
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}],
            "ports": [{"name": "https", "port": 6443}],
        }
    )
    servers.learn(slice_)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert servers.current == Server("10.0.0.1", 6443)
    servers.failed(servers.current)
    assert servers.current == Server("10.0.0.2", 6443)
    assert Servers([], kept).known == [Server("10.0.0.2", 6443), Server("10.0.0.3", 6443)]
    other = slice_.model_copy(deep=True)
    other.metadata.namespace = "shop"
    before = kept.read_bytes()
    servers.learn(other)
    assert kept.read_bytes() == before
    kept.write_text("{")
    assert Servers([Server("10.0.0.1", 6443)], kept).known == [Server("10.0.0.1", 6443)]


def test_no_address_at_all_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="--k8s-api-server"):
        Servers([], tmp_path / "none.json")


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "https:", "https://x:port", "https://x/path"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(AccessError):
        parse_server(url)


def kubeconfig(server: str, user: dict[str, Any]) -> bytes:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    return json.dumps(config).encode()


BROKEN_KUBECONFIGS = {
    "no kubeconfig": (b"hello", "kubeconfig"),
    "no server": (kubeconfig("ftp://x", {"token": "secret"}), "'ftp://x' is no address"),
}


@pytest.mark.parametrize("broken", BROKEN_KUBECONFIGS)
async def test_a_kubeconfig_that_becomes_broken_is_a_problem_until_it_is_mended(
    world: World, tmp_path: Path, broken: str
) -> None:
    path = tmp_path / "kubeconfig"
    good = kubeconfig(world.api.server.url, {"token": "secret"})
    path.write_bytes(good)
    source = world.source(access=Access(path))
    problems = world.read(source)
    world.run(source)
    await world.watching(source)
    content, said = BROKEN_KUBECONFIGS[broken]
    path.write_bytes(content)
    cut(world)
    told = [
        event.problems
        for event in await problems.until(lambda events: any(map(is_of_access, events)))
        if isinstance(event, Invalid)
    ]
    assert said in told[-1][0].message
    assert "what was read before is used" in told[-1][0].message
    await world.watching(source)
    path.write_bytes(good)
    cut(world)
    await problems.until(lambda events: events[-1] == Invalid("api:access"))


def cut(world: World) -> None:
    for connection in list(world.api.server.connections):
        connection.cut()


def is_of_access(event: Event) -> bool:
    return isinstance(event, Invalid) and event.origin == "api:access" and bool(event.problems)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"hello",
        b"5",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"current-context": "c", "users": 5, "clusters": [], "contexts": [1]}',
        kubeconfig("", {}).replace(b'"server": ""', b'"server": 5'),
    ],
)
def test_a_broken_kubeconfig_is_one_sentence_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(content)
    with pytest.raises(AccessError) as caught:
        Access(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_kubeconfig_names_the_server_and_the_token(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(kubeconfig("https://192.0.2.1:6443", {"token": "secret"}))
    access = Access(path)
    assert access.server == "https://192.0.2.1:6443"
    assert access.headers() == [("authorization", "Bearer secret")]
    with pytest.raises(AccessError):
        Access(tmp_path / "missing")


def test_exec_plugin_is_run_again_when_its_token_is_read_again(tmp_path: Path) -> None:
    plugin, counter = tmp_path / "plugin", tmp_path / "count"
    plugin.write_text(
        f"""#!/bin/sh
echo x >> {counter}
n=$(wc -l < {counter})
echo '{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
echo '"status":{{"token":"t'$n'"}}}}'
"""
    )
    plugin.chmod(0o700)
    exec_ = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(plugin),
        "interactiveMode": "Never",
    }
    path = tmp_path / "kubeconfig"
    path.write_bytes(kubeconfig("https://192.0.2.1:6443", {"exec": exec_}))
    access = Access(path)
    assert access.headers() == [("authorization", "Bearer t1")]
    access.reload()
    assert access.headers() == [("authorization", "Bearer t2")]

# SPDX-License-Identifier: Apache-2.0
"""An agent whose predecessor left full maps starts while some of its inputs cannot be read."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bpf.maps.lb import LBMaps
from bpf.maps.lb_dump import dump
from cilia.agent.config import AgentConfig
from cilia.agent.wiring import Agent
from cilia.cli.status import lines
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifests import ManifestSource
from statedb import StatusKind
from tests.cilia.k8s.fake_api import FakeApi
from tests.cilia.k8s.forms import service_form, slice_form, yaml_of
from tests.kube.agents import api_source, running_agent
from tests.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("short_grace")

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
PODS, NODES, NAMESPACES = "/api/v1/pods", "/api/v1/nodes", "/api/v1/namespaces"
POLICIES = "/apis/cilium.io/v2/ciliumlocalredirectpolicies"
GONE, CHANGED, NEW = "10.96.0.1", "10.96.0.2", "10.96.0.3"


class Life:
    """An agent that runs, and the maps that outlive it."""

    def __init__(self, agent: Agent, maps: LBMaps) -> None:
        self.agent, self.maps = agent, maps

    def serves(self, ip: str) -> bool:
        return f"{ip}:80/TCP" in dump(self.maps)

    def reaches(self, ip: str) -> bool:
        """True if a backend is in the maps."""
        return f"ADDR={ip}:8080/TCP" in dump(self.maps)

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5 * PATIENCE):
            while not condition():
                await anyio.sleep(0.005)

    def status(self) -> str:
        return "\n".join(lines(self.agent.observation.status.as_dict()))

    def why(self, ip: str) -> str:
        """Why the frontend of a Service is not as its object says."""
        frontends = self.agent.loadbalancer.tables.frontends
        for fe in frontends.all(self.agent.ctx.db.read_txn()):
            if str(fe.address.ip) == ip and fe.status.kind is StatusKind.ERROR:
                return fe.status.error
        return ""


def config(**options: Any) -> AgentConfig:
    return AgentConfig(node_name="n1", **options)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    api = FakeApi(SERVICES, SLICES, PODS, NODES, NAMESPACES, POLICIES)
    await api.start()
    yield api
    await api.stop()


def put(api: FakeApi, name: str, ip: str, endpoint: str) -> None:
    api.put(SERVICES, service_form(name, ip))
    api.put(SLICES, slice_form(f"{name}-1", service=name, addresses=(endpoint,)))


@asynccontextmanager
async def after_restart(api: FakeApi, *forbidden: str, **options: Any) -> AsyncIterator[Life]:
    """Between two agents one Service goes, one comes, and one gets another endpoint; the second
    agent may not read some resources.
    """
    maps = LBMaps.fake()
    settings = config(k8s_api_server=api.server.url, **options)
    put(api, "gone", GONE, "10.1.0.1")
    put(api, "changed", CHANGED, "10.1.0.2")
    source = api_source(settings)
    async with running_agent(settings, source, source.run, datapath=MemoryDatapath(maps)):
        pass
    for path, name in ((SERVICES, "gone"), (SLICES, "gone-1")):
        api.delete(path, "test", name)
    put(api, "changed", CHANGED, "10.1.0.3")
    put(api, "new", NEW, "10.1.0.4")
    api.forbidden.update(forbidden)
    source = api_source(settings)
    async with running_agent(
        settings, source, source.run, datapath=MemoryDatapath(maps), synchronised=False
    ) as agent:
        yield Life(agent, maps)


@pytest.mark.parametrize("path", [PODS, NODES])
async def test_services_are_served_while_another_resource_cannot_be_listed(
    api: FakeApi, path: str
) -> None:
    async with after_restart(api, path) as life:
        await life.until(lambda: life.serves(NEW) and life.reaches("10.1.0.3"))
        assert life.serves(GONE), "nothing is removed before all is read"
        assert "not yet synchronised: nothing is removed from the kernel" in life.status()
        refused = f"k8s.watch-{path.rpartition('/')[2]}: 403: Forbidden"
        await life.until(lambda: refused in life.status())
        api.forbidden.clear()
        await life.until(lambda: not life.serves(GONE))
        await life.agent.loadbalancer.synchronised()
        assert life.serves(NEW)


@pytest.mark.parametrize("path", [SERVICES, SLICES])
async def test_services_stay_as_they_are_while_half_of_them_cannot_be_listed(
    api: FakeApi, path: str
) -> None:
    async with after_restart(api, path) as life:
        before = dump(life.maps)
        watches = life.agent.cluster.watches
        db = life.agent.ctx.db
        await life.until(
            lambda: all(row.state in ("failed", "watching") for row in watches.all(db.read_txn()))
        )
        if path == SLICES:
            await life.until(lambda: bool(life.why(NEW)))
        assert dump(life.maps) == before
        api.forbidden.clear()
        await life.until(lambda: life.serves(NEW) and not life.serves(GONE))
    assert life.reaches("10.1.0.3")


async def test_cluster_addresses_wait_for_redirect_policies(api: FakeApi) -> None:
    async with after_restart(api, POLICIES, enable_local_redirect_policy=True) as life:
        before = dump(life.maps)
        await life.until(lambda: "policy for it may be unread" in life.why(NEW))
        assert dump(life.maps) == before
        api.forbidden.clear()
        await life.until(lambda: life.serves(NEW) and not life.serves(GONE))


def served(name: str, ip: str, endpoint: str) -> bytes:
    return yaml_of(
        service_form(name, ip), slice_form(f"{name}-1", service=name, addresses=(endpoint,))
    )


async def test_the_services_of_good_files_are_served_beside_a_broken_one(tmp_path: Path) -> None:
    """Nothing tells what was in force from it: somebody emptied the state directory."""
    maps, directory = LBMaps.fake(), tmp_path / "manifests"
    directory.mkdir()
    settings = config(k8s_manifests=directory)

    def write(name: str, content: bytes) -> None:
        (directory / f".{name}").write_bytes(content)
        os.utime(directory / f".{name}", (1, 1))
        (directory / f".{name}").rename(directory / name)

    write("gone.yaml", served("gone", GONE, "10.1.0.1"))
    write("changed.yaml", served("changed", CHANGED, "10.1.0.2"))
    source = ManifestSource(directory)
    async with running_agent(settings, source, source.run, datapath=MemoryDatapath(maps)) as agent:
        assert "synchronised" in Life(agent, maps).status()
    write("gone.yaml", b"{")
    write("changed.yaml", served("changed", CHANGED, "10.1.0.3"))
    write("new.yaml", served("new", NEW, "10.1.0.4"))
    copies = LastReadable(tmp_path / "copies", after_restart=True)
    source = ManifestSource(directory, copies=copies)
    async with running_agent(
        settings, source, source.run, datapath=MemoryDatapath(maps), synchronised=False
    ) as agent:
        life = Life(agent, maps)
        await life.until(lambda: life.serves(NEW) and life.reaches("10.1.0.3"))
        assert life.serves(GONE)
        assert "not yet synchronised: nothing is removed from the kernel" in life.status()
        unread = "k8s.watch-manifests: gone.yaml is not read, and nothing tells"
        await life.until(lambda: unread in life.status())
        (directory / "new.yaml").unlink()
        await anyio.sleep(1.2)  # what a file that went had, goes a second later
        assert life.serves(NEW)
        write("gone.yaml", served("gone", "10.96.0.9", "10.1.0.1"))
        await life.until(lambda: not (life.serves(GONE) or life.serves(NEW)))
        assert life.serves("10.96.0.9")
        await life.agent.loadbalancer.synchronised()
        await life.until(lambda: "Degraded" not in life.status())

# SPDX-License-Identifier: Apache-2.0
"""The wiring on an API server in this process: inputs, convergence, status, what is refused."""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from pydantic import ValidationError

from cilia.agent.config import AgentConfig
from cilia.agent.resources import resources
from cilia.agent.wiring import Agent
from cilia.cluster.inputs import open_input
from cilia.k8s.change_time import TRIGGER
from cilia.program.errors import ProgramError
from statedb.status import StatusKind
from tables.loadbalancer.convergence import Convergence
from tests.cilia.k8s.fake_api import FakeApi
from tests.cilia.k8s.forms import service_form, slice_form, with_metadata
from tests.kube.agents import api_source, running_agent

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
OTHERS = ("/api/v1/pods", "/api/v1/nodes", "/api/v1/namespaces")


def config(api: FakeApi, **options: Any) -> AgentConfig:
    return AgentConfig(k8s_api_server=api.server.url, node_name="n1", **options)


def slice_at(moment: float, *addresses: str) -> dict[str, Any]:
    form = slice_form(addresses=addresses)
    text = datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat()
    form["metadata"]["annotations"] = {TRIGGER: text}
    return form


async def row_of(agent: Agent, name: str) -> Convergence:
    """Waits for the row."""
    table, db = agent.loadbalancer.convergence, agent.ctx.db
    async with asyncio.timeout(10):
        while True:
            row, changed = table.get_watch(db.read_txn(), name)
            if row is not None and row.map_at:
                return row
            await changed.wait()


@pytest.fixture
async def api() -> Any:
    api = FakeApi(SERVICES, SLICES, *OTHERS)
    await api.start()
    yield api
    await api.stop()


async def test_change_is_followed_from_its_writer_to_the_maps(api: FakeApi) -> None:
    api.put(SERVICES, service_form("echo"))
    api.put(SLICES, slice_at(time.time() - 100, "10.1.0.1"))
    settings = config(api)
    source = api_source(settings)
    async with running_agent(settings, source, source.run) as agent:
        # What was there at the start is no change.
        assert agent.loadbalancer.convergence.num_objects(agent.ctx.db.read_txn()) == 0
        written_at = time.time() - 5
        api.put(SLICES, slice_at(written_at, "10.1.0.1", "10.1.0.2"))
        row = await row_of(agent, "EndpointSlice/test/echo-1")
        assert row.time_source == "trigger"
        assert row.changed_at == pytest.approx(written_at, abs=0.001)
        assert row.changed_at < row.received_at <= row.table_at <= row.map_at
        assert 5 <= row.stages_s["total"] < 15
        frontends = list(agent.loadbalancer.tables.frontends.all(agent.ctx.db.read_txn()))
        assert [fe.status.kind for fe in frontends] == [StatusKind.DONE]
        assert row.map_at == frontends[0].status.updated_at
        text = generate_latest(agent.ctx.registry).decode()
        labels = 'kind="EndpointSlice",stage="total",time_source="trigger"'
        assert f"cilia_convergence_seconds_count{{{labels}}} 1.0" in text


async def test_change_that_changes_no_frontend_is_not_counted(api: FakeApi) -> None:
    api.put(SERVICES, service_form("echo"))
    api.put(SLICES, slice_form())
    settings = config(api)
    source = api_source(settings)
    async with running_agent(settings, source, source.run) as agent:
        form = slice_form()
        form["metadata"]["annotations"] = {"somebody": "was here"}
        api.put(SLICES, form)
        api.put(SERVICES, service_form("other", ip="10.96.0.2"))
        await row_of(agent, "Service/test/other")
        rows = [row.name for row in agent.loadbalancer.convergence.all(agent.ctx.db.read_txn())]
        assert rows == ["test/other"]


async def test_row_goes_with_its_object(api: FakeApi) -> None:
    api.put(SERVICES, service_form("echo"))
    settings = config(api)
    source = api_source(settings)
    async with running_agent(settings, source, source.run) as agent:
        api.put(SERVICES, service_form("echo", ip="10.96.0.7"))
        await row_of(agent, "Service/test/echo")
        api.delete(SERVICES, "test", "echo")
        table, db = agent.loadbalancer.convergence, agent.ctx.db
        async with asyncio.timeout(10):
            while table.get(db.read_txn(), "Service/test/echo") is not None:
                _, changed = table.get_watch(db.read_txn(), "Service/test/echo")
                await changed.wait()
        labels = {"kind": "Service", "stage": "total", "time_source": "arrival"}
        count = agent.ctx.registry.get_sample_value("cilia_convergence_seconds_count", labels)
        assert count == 2, "the change and the deletion"


@pytest.mark.parametrize(
    "order", [(SERVICES, SLICES), (SLICES, SERVICES)], ids=["slice", "service"]
)
async def test_no_row_stays_whichever_of_the_two_goes_last(
    api: FakeApi, order: tuple[str, str]
) -> None:
    """The first one takes the frontends along: the second one changes nothing that is in force."""
    names = {SERVICES: "echo", SLICES: "echo-1"}
    settings = config(api)
    source = api_source(settings)
    async with running_agent(settings, source, source.run) as agent:
        table, db = agent.loadbalancer.convergence, agent.ctx.db
        api.put(SERVICES, service_form("echo"))
        await row_of(agent, "Service/test/echo")
        api.put(SLICES, slice_form())
        await row_of(agent, "EndpointSlice/test/echo-1")
        for path in order:
            row = f"{'Service' if path == SERVICES else 'EndpointSlice'}/test/{names[path]}"
            api.delete(path, "test", names[path])
            async with asyncio.timeout(5):
                while table.get(db.read_txn(), row) is not None:
                    await table.get_watch(db.read_txn(), row)[1].wait()
        assert table.num_objects(db.read_txn()) == 0


async def test_watches_stand_in_table_status_and_metrics(api: FakeApi) -> None:
    settings = config(api)
    source = api_source(settings)
    async with running_agent(settings, source, source.run) as agent:
        status = agent.observation.status.as_dict()
        states = {row["resource"]: row for row in status["watches"]}
        assert set(states) == {"services", "endpointslices", "pods", "nodes", "namespaces"}
        assert all(row["proof_age_s"] < 10 for row in states.values())
        text = generate_latest(agent.ctx.registry).decode()
        assert 'cilia_k8s_watch_up{resource="services"} 1.0' in text
        assert 'cilia_k8s_watch_proof_age_seconds{resource="nodes"}' in text
        await api.stop()
        db, watches = agent.ctx.db, agent.cluster.watches
        async with asyncio.timeout(10):
            while True:
                row, changed = watches.get_watch(db.read_txn(), "services")
                if row is not None and row.state == "failed":
                    break
                await changed.wait()
        degraded = [entry["component"] for entry in agent.observation.status.degraded()]
        assert "k8s.watch-services" in degraded


def test_resources_are_narrowed_by_the_api_server() -> None:
    policies = AgentConfig(node_name="n1", enable_local_redirect_policy=True)
    found = {r.name: r for r in resources(policies)}
    assert found["pods"].field_selector == "spec.nodeName=n1"
    assert found["services"].label_selector == "!service.kubernetes.io/service-proxy-name"
    assert found["ciliumlocalredirectpolicies"].path == (
        "/apis/cilium.io/v2/ciliumlocalredirectpolicies"
    )
    named = {r.name: r for r in resources(AgentConfig(k8s_service_proxy_name="ours"))}
    assert named["endpointslices"].label_selector == (
        "service.kubernetes.io/service-proxy-name=ours,!service.kubernetes.io/headless"
    )
    assert "ciliumlocalredirectpolicies" not in named


def test_two_sources_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="--k8s-api-server"):
        open_input(AgentConfig(), resources(AgentConfig()))
    both = AgentConfig(k8s_manifests=tmp_path, k8s_api_server="https://192.0.2.1:6443")
    with pytest.raises(ProgramError, match="two sources"):
        open_input(both, resources(both))


@pytest.mark.parametrize(
    "options",
    [{"k8s_watch_proof_interval": "0s"}, {"k8s_heartbeat_timeout": "soon"}, {"k8s_client_qps": 0}],
)
def test_wrong_times_and_rates_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AgentConfig(**options)


async def test_manifests_are_narrowed_as_the_api_server_would(tmp_path: Path) -> None:
    proxy = {"service.kubernetes.io/service-proxy-name": "other"}
    headless = {"service.kubernetes.io/headless": ""}
    bare = slice_form("headless-1", "headless")
    forms = [
        service_form("ours"),
        with_metadata(service_form("theirs", "10.96.0.2"), labels=proxy),
        with_metadata(service_form("headless", None), labels=headless),
        slice_form("ours-1", "ours"),
        with_metadata(bare, labels=bare["metadata"]["labels"] | headless),
    ]
    (tmp_path / "a.json").write_text(json.dumps({"kind": "List", "items": forms}))
    settings = AgentConfig(k8s_manifests=tmp_path, node_name="n1", state_dir=tmp_path / "state")
    objects = open_input(settings, resources(settings))
    async with running_agent(settings, objects.source, objects.source.run) as agent:
        txn = agent.ctx.db.read_txn()
        names = [service.name for service in agent.loadbalancer.tables.services.all(txn)]
        assert names == ["test/headless", "test/ours"]
        assert {be.service_name for be in agent.loadbalancer.tables.backends.all(txn)} == {
            "test/ours"
        }
        forms[0]["metadata"]["labels"] = proxy
        (tmp_path / "a.json").write_text(json.dumps({"kind": "List", "items": forms}))
        async with asyncio.timeout(10):
            while agent.loadbalancer.tables.services.num_objects(agent.ctx.db.read_txn()) > 1:
                await asyncio.sleep(0.01)

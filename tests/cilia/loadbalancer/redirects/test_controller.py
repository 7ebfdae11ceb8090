# SPDX-License-Identifier: Apache-2.0
"""Redirect policies: which pods serve, which frontends are redirected, when it is complete."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bpf.maps.lb_numbers import FrontendType
from cilia.k8s.crds import CiliumLocalRedirectPolicy
from cilia.loadbalancer.redirects.controller import (
    RedirectController,
    RedirectTables,
    redirection,
    wants,
)
from cilia.loadbalancer.redirects.conversion import convert_policy
from tables.addressing import IP, L3n4Addr
from tables.cluster.pod_namespaces import PodNamespace, new_pod_namespaces_table
from tables.cluster.pods import Container, ContainerPort, Pod, new_pods_table
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.redirect_policies import (
    RedirectPolicy,
    new_redirect_policies_table,
)
from tables.loadbalancer.redirect_skips import new_redirect_skips_table
from tests.cilia.loadbalancer.world import World, change

VIP, NEAR, FAR = "10.96.0.1:80/TCP", "10.1.0.1:8080/TCP", "10.1.1.1:8080/TCP"


def policy(name: str = "near", service: str = "echo", **spec: Any) -> RedirectPolicy:
    form = {
        "metadata": {"name": name, "namespace": "test"},
        "spec": {
            "redirectFrontend": {"serviceMatcher": {"serviceName": service, "namespace": "test"}},
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": {"k8s:app": "cache"}},
                "toPorts": [{"port": "8080", "protocol": "TCP"}],
            },
            **spec,
        },
    }
    return convert_policy(CiliumLocalRedirectPolicy.model_validate(form))


def pod(name: str = "one", ip: str = "10.1.0.1", **fields: Any) -> Pod:
    ports = (ContainerPort(8080), ContainerPort(9090))
    made = Pod(
        "test",
        name,
        ips=(IP.parse(ip),),
        containers=(Container("cache", ports),),
        phase="Running",
        ready=True,
        labels={"app": "cache"},
    )
    return msgspec.structs.replace(made, **fields)


def params(address: str, port_name: str = "", **fields: Any) -> FrontendParams:
    made = FrontendParams(L3n4Addr.parse(address), FrontendType.CLUSTER_IP, port_name, 80)
    return msgspec.structs.replace(made, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"ready": False},
        {"deleting": True},
        {"labels": {"app": "other"}},
        {"namespace": "elsewhere"},
        {"containers": ()},
    ],
)
def test_pods_serve_while_they_are_ready_selected_and_declare_the_port(
    fields: dict[str, Any],
) -> None:
    assert redirection(policy(), [pod()]).pods == ("test/one",)
    assert redirection(policy(), [pod(**fields)]).pods == ()


def test_ports_are_declared_with_their_protocol() -> None:
    udp = (Container("cache", (ContainerPort(8080, "UDP"),)),)
    assert redirection(policy(), [pod(containers=udp)]).backends == ()


def named(*ports: tuple[str, str]) -> list[dict[str, str]]:
    return [{"port": port, "protocol": "TCP", "name": name} for port, name in ports]


def test_several_ports_are_joined_by_their_names() -> None:
    both = policy(
        redirectBackend={
            "localEndpointSelector": {},
            "toPorts": named(("8080", "Http"), ("9090", "admin")),
        }
    )
    found = redirection(both, [pod()])
    assert found.serves(params(VIP, "http"))
    assert [be.address.port for be in found.backends if "http" in be.port_names] == [8080]
    assert not found.serves(params(VIP, "dns"))


def test_cluster_addresses_alone_are_redirected() -> None:
    everything = policy()
    assert wants(everything, params(VIP))
    assert not wants(everything, params("0.0.0.0:30080/TCP", type=FrontendType.NODE_PORT))
    assert not wants(everything, params("10.96.0.1:80/TCP/i"))


def matcher(*ports: tuple[str, str]) -> dict[str, Any]:
    service = {"serviceName": "echo", "namespace": "test"}
    return {"serviceMatcher": {**service, "toPorts": named(*ports)}}


def test_one_port_is_matched_by_number_several_by_name_too() -> None:
    single = policy(redirectFrontend=matcher(("80", "whatever")))
    assert wants(single, params(VIP, "http"))
    assert not wants(single, params("10.96.0.1:81/TCP", "http"))
    several = policy(redirectFrontend=matcher(("80", "http"), ("81", "admin")))
    assert wants(several, params(VIP, "http"))
    assert not wants(several, params(VIP, "admin"))


class Redirects:
    """The controller over tables that tests fill."""

    def __init__(self) -> None:
        self.world = World()
        db = self.world.db
        self.tables = RedirectTables(
            new_redirect_policies_table(db),
            new_pods_table(db),
            new_pod_namespaces_table(db),
            new_redirect_skips_table(db),
        )
        self.controller = RedirectController(self.world.writer, self.tables)

    def put(self, table: Any, row: Any) -> None:
        with self.world.db.write_txn(table) as wtxn:
            table.insert(wtxn, row)

    def drop(self, table: Any, row: Any) -> None:
        with self.world.db.write_txn(table) as wtxn:
            table.delete(wtxn, row)

    def redirect_of(self, address: str) -> str | None:
        redirect = self.world.frontend(address).redirect_to
        return None if redirect is None else redirect.name


def test_a_frontend_that_is_new_is_never_seen_without_its_redirection() -> None:
    r = Redirects()
    r.put(r.tables.policies, policy())
    r.put(r.tables.pods, pod())
    r.controller.step()
    r.world.apply(change("echo", VIP, backends=[FAR]))
    assert r.redirect_of(VIP) == "near:local-redirect"
    assert r.world.backends_of(VIP) == [NEAR]


def test_a_redirection_ends_with_its_last_pod_and_begins_with_the_next() -> None:
    r = Redirects()
    r.world.apply(change("echo", VIP, backends=[FAR]))
    r.put(r.tables.policies, policy())
    r.controller.step()
    assert (r.redirect_of(VIP), r.world.backends_of(VIP)) == (None, [FAR])
    r.put(r.tables.pods, pod())
    r.controller.step()
    assert r.world.backends_of(VIP) == [NEAR]
    r.put(r.tables.pods, pod(ready=False))
    r.controller.step()
    assert (r.redirect_of(VIP), r.world.backends_of(VIP)) == (None, [FAR])


def test_nothing_is_written_when_nothing_changes() -> None:
    r = Redirects()
    r.world.apply(change("echo", VIP))
    r.put(r.tables.policies, policy(skipRedirectFromBackend=True))
    r.put(r.tables.pods, pod())
    r.controller.step()
    before = (r.world.revisions(), r.tables.skips.revision(r.world.db.read_txn()))
    r.controller.step()
    assert (r.world.revisions(), r.tables.skips.revision(r.world.db.read_txn())) == before


def test_nothing_is_pruned_until_pods_policies_and_namespaces_are_known() -> None:
    r = Redirects()
    db = r.world.db
    waiting = []
    for table in (r.tables.policies, r.tables.pods, r.tables.namespaces):
        with db.write_txn(table) as wtxn:
            waiting.append((table, table.register_initializer(wtxn, "test")))
    for table, done in waiting:
        watch = r.controller.step()
        assert not r.world.tables.frontends.initialized(db.read_txn())
        assert not r.tables.skips.initialized(db.read_txn())
        with db.write_txn(table) as wtxn:
            done(wtxn)
        assert any(channel.closed for channel in watch._channels)
    r.controller.step()
    assert r.world.tables.frontends.initialized(db.read_txn())
    assert r.tables.skips.initialized(db.read_txn())


def test_a_pod_is_spared_by_its_namespace_once_that_is_known() -> None:
    r = Redirects()
    r.world.apply(change("echo", VIP))
    r.put(r.tables.policies, policy(skipRedirectFromBackend=True))
    r.put(r.tables.pods, pod())
    watch = r.controller.step()
    row = r.tables.skips.get(r.world.db.read_txn(), ("test/one", policy().name))
    assert row is not None
    assert (row.frontends, row.netns_cookie) == ((L3n4Addr.parse(VIP),), None)
    assert row.pod_addresses == pod().ips != ()
    r.put(r.tables.namespaces, PodNamespace("test/one", 7))
    assert any(channel.closed for channel in watch._channels)
    r.controller.step()
    row = r.tables.skips.get(r.world.db.read_txn(), ("test/one", policy().name))
    assert row is not None
    assert row.netns_cookie == 7

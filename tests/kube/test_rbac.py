# SPDX-License-Identifier: Apache-2.0
"""Least privilege, by the API server's own audit log: what the programs of an installation ask for
is what the chart's rules grant, rule by rule; nothing is refused and nothing is granted unused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cilia.k8s.crds import DEFINITIONS, POD_NETWORK_DEFINITIONS
from cilia.k8s.crds.identities import HEARTBEAT, identity_form
from tests.cilia.identity.test_shared import path_of
from tests.e2e.pods import PodNode
from tests.e2e.world import REPOSITORY, World, world
from tests.install.rendered import template

from .apiserver import ApiServer, Settings
from .audit import AuditLog, Right, granted, not_granted, rights, unneeded
from .operators import Replica
from .programs import Program
from .test_operator import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

AGENT, OPERATOR = "kube-system:cilia", "kube-system:cilia-operator"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NODE_CONFIG = """
apiVersion: cilium.io/v2
kind: CiliumNodeConfig
metadata: {name: big, namespace: kube-system}
spec:
  nodeSelector: {matchLabels: {size: big}}
  defaults: {bpf-lb-map-max: "1024"}
"""


POOL = "10.207.0.0/24"


class Cluster:
    """An API server with the chart's objects, and what it noted about our accounts."""

    def __init__(self, server: ApiServer, audit: AuditLog) -> None:
        self.server, self.audit = server, audit
        text = template(
            f"--set=k8sServiceHost=127.0.0.1,k8sServicePort={server.port}",
            "--set=localRedirectPolicies.enabled=true",
            "--set=podNetwork.enabled=true",
        )
        server.apply(text)
        self.forms = [form for form in yaml.safe_load_all(text) if form]

    def kubeconfig(self, account: str) -> Path:
        namespace, name = account.split(":")
        return self.server.kubeconfig_of_account(namespace, name)

    def reviewed(self, account: str) -> set[Right]:
        """What the API server says that an account may do in its namespace, beyond what every
        account may (ask what it may do)."""
        namespace, name = account.split(":")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        }
        user = f"--as=system:serviceaccount:{namespace}:{name}"
        groups = (
            f"--as-group=system:serviceaccounts:{namespace}",
            "--as-group=system:authenticated",
        )
        text = self.server.kubectl(
            *("create", "-f", "-", "-o", "json", "--validate=false", user, *groups),
            text=json.dumps(review),
        )
        rules = json.loads(text)["status"]["resourceRules"]
        every = {"authorization.k8s.io", "authentication.k8s.io"}
        return {right for rule in rules for right in rights(rule) if right.group not in every}

    def wait(self, account: str, timeout_s: float = 10) -> None:
        """Until it has used all, or seems to need no more."""
        has = granted(self.forms, account)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not unneeded(has, self.audit.uses(account)), timeout_s)

    def check(self, account: str) -> None:
        """It used each right that it has, and no other."""
        has, uses = granted(self.forms, account), self.audit.uses(account)
        assert has and uses
        assert not {use for use, codes in uses.items() if codes & {401, 403}}, "was refused"
        assert not not_granted(has, uses), "is not in the chart"
        assert not unneeded(has, uses), "is in the chart and nobody uses it"
        assert self.reviewed(account) == {right._replace(namespace="") for right in has}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("rbac")
    audit = AuditLog(directory, [AGENT, OPERATOR])
    with ApiServer(directory, Settings(flags=(*Settings().flags, *audit.flags))) as server:
        yield Cluster(server, audit)


@pytest.fixture(scope="module")
def operated(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """An operator made the kinds, and raised those that had a lower number."""

    def label(name: str) -> Any:
        status, body = cluster.server.request("GET", f"{CRDS}/{name}")
        return json.loads(body)["metadata"]["labels"] if status == 200 else None

    names = [definition.name for definition in (*DEFINITIONS, *POD_NETWORK_DEFINITIONS)]
    directory = tmp_path_factory.mktemp("operator")
    account = cluster.kubeconfig(OPERATOR)
    flags = ["--pod-network=true", "--cilium-endpoint-gc-interval=500ms"]
    flags += ["--identity-gc-interval=500ms", "--identity-heartbeat-timeout=1s"]
    with Replica(directory, "operator", account, *flags) as operator:
        operator.start()
        eventually(lambda: all(map(label, names)))
        operator.program.stop()
        for name in names:
            lower = {"metadata": {"labels": {"cilia.io/crd-schema": "0"}}}
            cluster.server.patch(f"{CRDS}/{name}", lower)
        operator.start()
        eventually(lambda: all(label(name)["cilia.io/crd-schema"] != "0" for name in names))
        leave_behind(cluster.server)
        cluster.wait(OPERATOR)
    return cluster


def leave_behind(server: ApiServer) -> None:
    """An identity that nobody uses, and the CiliumEndpoint of a pod that is gone."""
    server.post(path_of(299).rpartition("/")[0], identity_form(299, ["k8s:app=unused"]))
    endpoint = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumEndpoint",
        "metadata": {"name": "gone"},
        "status": {"networking": {"addressing": []}},
    }
    server.post("/apis/cilium.io/v2/namespaces/default/ciliumendpoints", endpoint)


def test_the_operator_uses_every_right_it_has_and_no_other(operated: Cluster) -> None:
    operated.check(OPERATOR)


@pytest.fixture
def w(tmp_path: Path, operated: Cluster) -> Iterator[World]:
    """An agent's world, from which the API server is reached."""
    with world(tmp_path, "rbac") as made:
        command = [sys.executable, "-m", "tests.kube.door", made.namespace]
        command.append(str(operated.server.port))
        door = Program("door", command, tmp_path / "door.log", directory=REPOSITORY)
        door.start()
        try:
            door.wait_until(lambda: "open" in door.tail(), 20)
            yield made
        finally:
            door.stop()


def build_config(kubeconfig: Path, directory: Path) -> None:
    command = [
        *(sys.executable, "-m", "cilia", "build-config", f"--dest={directory}"),
        *(f"--k8s-kubeconfig-path={kubeconfig}", "--node-name=node-1"),
    ]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (directory / "current/bpf-lb-map-max").read_text() == "1024"


def test_the_agent_uses_every_right_it_has_and_no_other(
    operated: Cluster, w: World, tmp_path: Path
) -> None:
    account = operated.kubeconfig(AGENT)
    node = {
        "metadata": {"name": "node-1", "labels": {"size": "big"}},
        "spec": {"podCIDR": POOL, "podCIDRs": [POOL]},
    }
    operated.server.post("/api/v1/nodes", node)
    address = {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}
    operated.server.patch("/api/v1/nodes/node-1/status", {"status": address})
    operated.server.apply(NODE_CONFIG)
    build_config(account, tmp_path / "config")
    w.source = [f"--k8s-kubeconfig-path={account}", "--node-name=node-1", "--pod-network"]
    w.start_agent("--enable-local-redirect-policy=true", "--k8s-watch-proof-interval=1s")
    w.eventually(w.ready, 30)
    add_pods(operated.server, w)
    operated.wait(AGENT)
    operated.check(AGENT)


def add_pods(server: ApiServer, w: World) -> None:
    """A pod whose identity is made, and one whose identity was to be deleted."""
    server.post("/api/v1/namespaces", {"metadata": {"name": "test"}})
    nodes = PodNode(w, [POOL])
    try:
        add_pod(server, nodes, "made")
        (endpoint,) = nodes.rows("endpoints")
        marked = identity_form(300, endpoint["Labels"])
        marked["metadata"]["annotations"] = {HEARTBEAT: "2026-11-30T12:00:00Z"}
        marked["security-labels"]["k8s:app"] = "marked"
        server.post(path_of(300).rpartition("/")[0], marked)
        add_pod(server, nodes, "marked")
        assert {row["Identity"] for row in nodes.rows("endpoints")} > {300}
        change_pod(server, nodes, "made")
    finally:
        nodes.close()


def add_pod(server: ApiServer, nodes: PodNode, name: str) -> None:
    made = server.post(
        "/api/v1/namespaces/test/pods",
        {
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "none"}]},
        },
    )
    uid = made["metadata"]["uid"]
    arguments = f"K8S_POD_NAMESPACE=test;K8S_POD_NAME={name};K8S_POD_UID={uid}"
    pod = nodes.namespace(name)
    pod.result = nodes.cni("ADD", pod, environment={"CNI_ARGS": arguments})


def change_pod(server: ApiServer, nodes: PodNode, name: str) -> None:
    """Give a pod other labels, then delete it: what is said of it changes, and goes."""
    path = f"/apis/cilium.io/v2/namespaces/test/ciliumendpoints/{name}"
    eventually(lambda: server.request("GET", path)[0] == 200)
    before = server.get(path)["status"]["identity"]
    patch = {"metadata": {"labels": {"app": "changed"}}}
    server.patch(f"/api/v1/namespaces/test/pods/{name}", patch)
    eventually(lambda: server.get(path)["status"]["identity"] != before)
    nodes.delete(name)
    eventually(lambda: server.request("GET", path)[0] == 404)


def test_a_right_too_many_and_one_too_few_are_found() -> None:
    """The comparison itself, with a use of each scope."""
    every = Right("list", "", "pods")
    ours = Right("list", "", "pods", "kube-system")
    one = Right("get", "", "configmaps", "kube-system", "a")
    assert not unneeded({every}, {every}) and not not_granted({every}, {every, ours})
    assert unneeded({every}, {ours}) == {every}, "a role of the namespace would do"
    assert not_granted({ours}, {every}) == {every}
    assert not not_granted({one}, {one})
    theirs = Right("list", "", "pods", "shop")
    assert not unneeded({every}, {theirs}), "no role of our namespace would do"
    assert not_granted({one}, {one._replace(name="b")})
    assert unneeded({one}, {one._replace(verb="list")}) == {one}

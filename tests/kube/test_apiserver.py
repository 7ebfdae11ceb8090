# SPDX-License-Identifier: Apache-2.0
"""The API server of the tests is a real one: it refuses, remembers, restarts and goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from .apiserver import ApiServer, Settings
from .programs import ProgramFailed

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NAMESPACE}
spec:
  ipFamilyPolicy: PreferDualStack
  ports: [{port: 80}]
"""
READER = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: NAMESPACE}
rules: [{apiGroups: [""], resources: [services], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: NAMESPACE}]
"""


def test_a_service_gets_an_address_of_each_family(api_server: ApiServer, namespace: str) -> None:
    api_server.apply(SERVICE.replace("NAMESPACE", namespace))
    service = api_server.get(f"/api/v1/namespaces/{namespace}/services/web")
    v4, v6 = service["spec"]["clusterIPs"]
    assert v4.startswith("10.96.")
    assert v6.startswith("fd00:10:96::")


def test_an_object_that_breaks_a_rule_is_refused(api_server: ApiServer, namespace: str) -> None:
    wrong = SERVICE.replace("NAMESPACE", namespace).replace("80", "80000")
    with pytest.raises(ProgramFailed, match="must be between 1 and 65535"):
        api_server.apply(wrong)


def test_a_service_account_may_do_what_its_role_says_and_no_more(
    api_server: ApiServer, namespace: str
) -> None:
    api_server.apply(READER.replace("NAMESPACE", namespace))
    kubeconfig = api_server.kubeconfig_of_account(namespace, "reader")
    asked = f"--kubeconfig={kubeconfig}", f"--namespace={namespace}"
    assert api_server.kubectl("get", "services", *asked) == ""
    with pytest.raises(ProgramFailed, match="cannot list resource"):
        api_server.kubectl("get", "pods", *asked)


def test_users_of_the_settings_have_their_groups_and_no_rights(tmp_path: Path) -> None:
    with ApiServer(tmp_path, Settings(users={"visitor": ["system:authenticated"]})) as server:
        status, body = server.request("GET", "/api/v1/nodes", user="visitor")
        assert status == 403, body
        assert server.get("/api/v1/nodes")["items"] == []


@pytest.mark.timeout(120)
def test_what_was_written_is_there_after_a_crash_of_the_server(tmp_path: Path) -> None:
    with ApiServer(tmp_path) as server:
        server.post("/api/v1/namespaces", {"metadata": {"name": "kept"}})
        server.server.kill()
        assert not server.ready()
        server.start_server()
        assert server.get("/api/v1/namespaces/kept")["metadata"]["name"] == "kept"
        memory = server.memory
        assert memory.exists()
    assert not memory.exists()
    assert not server.ready()

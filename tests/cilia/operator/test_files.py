# SPDX-License-Identifier: Apache-2.0
"""The operator over a directory of objects, without an API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from cilia.k8s.crds import CiliumEndpoint, CiliumIdentity
from cilia.k8s.crds.identities import identity_form
from cilia.k8s.object_files import ObjectFiles
from cilia.k8s.object_writer import Form, object_path
from cilia.linux.path_watch import PathWatch
from cilia.operator.config import OperatorConfig
from cilia.operator.run import run
from cilia.program.errors import ProgramError
from tests.cilia.identity.test_shared import labels_of
from tests.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("short_grace")

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: kept, namespace: test, labels: {app: web}}
spec: {nodeName: any, containers: [{name: main}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: test}
"""


def config(tmp_path: Path, **options: Any) -> OperatorConfig:
    given: dict[str, Any] = {
        "pod_network": True,
        "k8s_manifests": tmp_path / "manifests",
        "k8s_objects_dir": tmp_path / "objects",
        "operator_prometheus_serve_addr": None,
        "operator_api_serve_addr": None,
        "cilium_endpoint_gc_interval": "50ms",
        "identity_gc_interval": "50ms",
        "identity_heartbeat_timeout": "100ms",
    }
    return OperatorConfig(**{**given, **options})


@pytest.fixture
def files(tmp_path: Path) -> ObjectFiles:
    for name in ("manifests", "objects"):
        (tmp_path / name).mkdir()
    (tmp_path / "manifests" / "pods.yaml").write_text(POD)
    return ObjectFiles(tmp_path / "objects")


async def make_endpoint(files: ObjectFiles, name: str, identity: int) -> None:
    form: Form = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumEndpoint",
        "metadata": {"name": name, "namespace": "test"},
        "status": {"identity": {"id": identity}, "networking": {"addressing": []}},
    }
    await files.create(object_path(CiliumEndpoint, name, "test"), form)


def names(files: ObjectFiles) -> set[str]:
    """Names of objects, without the Lease."""
    forms = [json.loads(path.read_text()) for path in files.directory.glob("cilium*.json")]
    return {form["metadata"]["name"] for form in forms}


async def test_two_replicas_collect_what_no_pod_of_the_manifests_has(
    tmp_path: Path, files: ObjectFiles
) -> None:
    for number, app in ((300, "web"), (301, "gone"), (302, "unused"), (303, "kept")):
        form = identity_form(number, labels_of(app))
        await files.create(object_path(CiliumIdentity, str(number)), form)
    await make_endpoint(files, "gone", 301)
    await make_endpoint(files, "kept", 303)
    watch = PathWatch([files.directory], [files.directory])
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(run, config(tmp_path))
        with watch, anyio.fail_after(10 * PATIENCE):
            while names(files) != {"300", "303", "kept"}:
                await watch.wait(0.5)
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        lease = json.loads(await files.fetch(f"{path}/cilia-operator-resource-lock"))
        assert lease["spec"]["holderIdentity"] and lease["spec"]["leaseTransitions"] == 0
        group.cancel_scope.cancel()


async def test_nothing_is_collected_while_pods_cannot_be_read(
    tmp_path: Path, files: ObjectFiles
) -> None:
    manifest = tmp_path / "manifests" / "pods.yaml"
    manifest.write_text("kind: [")
    await make_endpoint(files, "kept", 303)
    await make_endpoint(files, "gone", 303)
    watch = PathWatch([files.directory], [files.directory])
    async with anyio.create_task_group() as group:
        group.start_soon(run, config(tmp_path))
        await anyio.sleep(0.5)  # ten looks would be
        assert names(files) == {"gone", "kept"}
        manifest.write_text(POD)
        with watch, anyio.fail_after(20 * PATIENCE):
            while names(files) != {"kept"}:
                await watch.wait(0.5)
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k8s_objects_dir": None}, "--k8s-manifests needs --k8s-objects-dir"),
        ({"pod_network": False}, "--k8s-manifests needs --k8s-objects-dir and --pod-network"),
        ({"k8s_objects_dir": Path("/nowhere")}, "/nowhere is no directory"),
        ({"k8s_manifests": Path("/nowhere")}, "/nowhere is no directory"),
        ({"k8s_manifests": None, "k8s_api_server": "http://127.0.0.1:1"}, "goes with"),
    ],
)
async def test_sources_that_do_not_fit_are_refused(
    tmp_path: Path, files: ObjectFiles, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProgramError, match=said):
        await run(config(tmp_path, **options))


def test_identities_are_not_collected_without_endpoints() -> None:
    with pytest.raises(ValueError, match="set both to 0 to collect nothing"):
        OperatorConfig(cilium_endpoint_gc_interval="0s")
    OperatorConfig(cilium_endpoint_gc_interval="0s", identity_gc_interval="0s")

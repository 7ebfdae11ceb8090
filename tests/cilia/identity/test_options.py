# SPDX-License-Identifier: Apache-2.0
"""How nodes agree on identities: what is refused, and with which sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cilia.agent.config import AgentConfig
from cilia.agent.resources import resources, shared_kinds
from cilia.cluster.inputs import Input, open_input
from cilia.k8s.crds import CiliumIdentity
from cilia.k8s.object_files import ObjectFiles
from cilia.k8s.writing import WritingClient
from cilia.program.errors import ProgramError


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("kvstore", "kvstore is not built: say crd"),
        ("doublewrite-readcrd", "is not built: say crd"),
        ("etcd", "'etcd' is no mode: say crd"),
    ],
)
def test_another_mode_is_refused(mode: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        AgentConfig(identity_allocation_mode=mode)


def config(directory: Path, **options: Any) -> AgentConfig:
    manifests = directory / "manifests"
    manifests.mkdir(exist_ok=True)
    given: dict[str, Any] = {
        "state_dir": directory / "state",
        "k8s_manifests": manifests,
        "pod_network": True,
    }
    return AgentConfig(**(given | options))


def opened(options: AgentConfig) -> Input:
    return open_input(options, resources(options), shared_kinds(options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k8s_objects_dir": "objects", "pod_network": False}, "leave it out without"),
        ({"k8s_objects_dir": "manifests"}, "which is only read: name another one"),
        ({"k8s_objects_dir": "state/objects"}, "lies in the state directory"),
    ],
)
def test_a_directory_of_another_use_is_refused(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    directory = tmp_path / options["k8s_objects_dir"]
    with pytest.raises(ValidationError, match=sentence):
        config(tmp_path, **(options | {"k8s_objects_dir": directory}))


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    options = config(tmp_path, k8s_objects_dir=tmp_path / "objects")
    with pytest.raises(ProgramError, match="is no directory: make it, one for all agents"):
        opened(options)


def test_a_directory_beside_an_api_server_is_refused(tmp_path: Path) -> None:
    options = config(
        tmp_path,
        k8s_manifests=None,
        k8s_objects_dir=tmp_path,
        k8s_api_server="http://127.0.0.1:1",
    )
    with pytest.raises(ProgramError, match="--k8s-objects-dir goes with --k8s-manifests"):
        opened(options)


def test_nodes_agree_by_what_they_are_given(tmp_path: Path) -> None:
    alone = opened(config(tmp_path))
    assert alone.shared is None
    files = opened(config(tmp_path, k8s_objects_dir=tmp_path))
    assert files.shared is not None and isinstance(files.shared.writer, ObjectFiles)
    assert set(files.jobs) == {"watch-manifests", "watch-objects"}
    server = {"k8s_manifests": None, "k8s_api_server": "http://127.0.0.1:1"}
    api = opened(config(tmp_path, **server))
    assert api.shared is not None and isinstance(api.shared.writer, WritingClient)
    assert api.shared.source is api.source


def test_without_the_pod_network_nothing_is_written_or_read_more(tmp_path: Path) -> None:
    server = {"k8s_manifests": None, "k8s_api_server": "http://127.0.0.1:1"}
    options = config(tmp_path, pod_network=False, **server)
    api = opened(options)
    assert api.shared is None
    assert CiliumIdentity not in [resource.kind for resource in resources(options)]

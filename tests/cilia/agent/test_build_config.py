# SPDX-License-Identifier: Apache-2.0
"""Options of one node: the ConfigMap's, and over them those of the node configs that choose it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cilia.agent.build_config import options_of_node, unknown_fields, write_directory
from cilia.k8s.crds import CiliumNodeConfig
from cilia.program.errors import ProgramError


def node_config(name: str, labels: dict[str, str], **defaults: str) -> CiliumNodeConfig:
    options = {option.replace("_", "-"): value for option, value in defaults.items()}
    form: dict[str, Any] = {
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"defaults": options, "nodeSelector": {"matchLabels": labels}},
    }
    return CiliumNodeConfig.model_validate(form)


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (directory / "current").iterdir()}


def test_a_later_name_beats_an_earlier_one_and_that_the_config_map() -> None:
    configs = [
        node_config("b", {"size": "big"}, bpf_lb_map_max="300"),
        node_config("a", {}, bpf_lb_map_max="200", devices="eth1"),
        node_config("c", {"size": "small"}, bpf_lb_map_max="100"),
    ]
    base = {"bpf-lb-map-max": "50", "enable-ipv6": "false"}
    assert options_of_node(base, configs, {"size": "big"}) == {
        "bpf-lb-map-max": "300",
        "devices": "eth1",
        "enable-ipv6": "false",
    }
    assert options_of_node(base, configs[:1], {}) == base


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_directory(tmp_path, {"enable-ipv6": "false", "devices": "eth0"})
    write_directory(tmp_path, {"enable-ipv4": "true"})
    assert content(tmp_path) == {"enable-ipv4": "true"}
    assert len(list(tmp_path.iterdir())) == 2, "the link and what it points to"


def test_fields_that_mean_nothing_are_told_with_the_object() -> None:
    wrong = node_config("b", {"size": "big"}).model_dump(by_alias=True)
    wrong["spec"]["default"] = {"enable-ipv6": "false"}
    configs = [node_config("a", {}), CiliumNodeConfig.model_validate(wrong)]
    assert list(unknown_fields(configs)) == [
        "CiliumNodeConfig kube-system/b: spec.default: is no field of this kind, and has no effect"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"enable-ipv5": "true"}, "enable-ipv5 is no option: is enable-ipv6 meant?"),
        ({"bpf-lb-map-max": "few"}, "--bpf-lb-map-max"),
        ({"../outside": "x"}, "'../outside' is no option"),
        ({".hidden": "x"}, "'.hidden' is no option"),
    ],
)
def test_what_the_agent_would_refuse_does_not_replace_what_is_right(
    tmp_path: Path, options: dict[str, str], said: str
) -> None:
    write_directory(tmp_path, {"devices": "eth0"})
    with pytest.raises(ProgramError) as refused:
        write_directory(tmp_path, options)
    assert said in str(refused.value) and "options-" not in str(refused.value)
    assert content(tmp_path) == {"devices": "eth0"}
    assert len(list(tmp_path.iterdir())) == 2
    assert not (tmp_path / "outside").exists()

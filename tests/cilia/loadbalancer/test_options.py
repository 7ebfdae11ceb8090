# SPDX-License-Identifier: Apache-2.0
"""Options of the load balancer: what is refused, and that each reaches who acts on it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cilia.agent.config import MAGLEV_TABLE_SIZES, AgentConfig
from cilia.agent.wiring import _frontend_config, _load_balancer_config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bpf_lb_maglev_table_size", 1000),
        ("node_port_range", "32767,30000"),
        ("node_port_range", "30000"),
        ("node_port_range", "0,100"),
        ("bpf_lb_algorithm", "fastest"),
        ("bpf_lb_mode", "nat"),
    ],
)
def test_value_without_meaning_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        AgentConfig.model_validate({name: value})


@pytest.mark.parametrize("size", MAGLEV_TABLE_SIZES)
def test_table_sizes_are_primes(size: int) -> None:
    assert all(size % divisor for divisor in range(2, int(size**0.5) + 1))
    assert _frontend_config(AgentConfig(bpf_lb_maglev_table_size=size)).maglev_table_size == size


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("kube_proxy_replacement", False, "kube_proxy_replacement"),
        ("bpf_lb_algorithm", "maglev", "algorithm"),
        ("bpf_lb_algorithm_annotation", True, "algorithm_annotation"),
        ("bpf_lb_mode", "hybrid", "mode"),
        ("bpf_lb_mode_annotation", True, "mode_annotation"),
        ("bpf_lb_external_clusterip", True, "external_clusterip"),
        ("bpf_lb_source_range_all_types", True, "source_range_all_types"),
        ("bpf_lb_enable_wildcard_entries", False, "wildcard_entries"),
    ],
)
def test_option_reaches_the_maps(option: str, value: Any, field: str) -> None:
    assert getattr(_frontend_config(AgentConfig()), field) != value
    assert getattr(_frontend_config(AgentConfig.model_validate({option: value})), field) == value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kube_proxy_replacement", False),
        ("enable_ipv4", False),
        ("enable_ipv6", False),
        ("enable_external_ips", False),
        ("enable_service_topology", True),
        ("bpf_lb_algorithm_annotation", True),
        ("bpf_lb_mode_annotation", True),
    ],
)
def test_option_reaches_the_conversion(option: str, value: bool) -> None:
    assert getattr(_load_balancer_config(AgentConfig()), option) is not value
    assert (
        getattr(_load_balancer_config(AgentConfig.model_validate({option: value})), option) is value
    )


def test_range_of_node_ports_reaches_both() -> None:
    config = AgentConfig(node_port_range="1000-2000")
    for made in (_frontend_config(config), _load_balancer_config(config)):
        assert (made.node_port_min, made.node_port_max) == (1000, 2000)

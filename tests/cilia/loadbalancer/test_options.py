# SPDX-License-Identifier: Apache-2.0
"""Options of the load balancer: refused values, and that the model itself reaches the parts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bpf.maps.lb import LBMaps
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.wiring import build
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.tracker import Tracker
from cilia.loadbalancer.frontend_options import MAGLEV_TABLE_SIZES
from cilia.loadbalancer.options import LoadBalancerOptions


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
    assert LoadBalancerOptions(bpf_lb_maglev_table_size=size).bpf_lb_maglev_table_size == size


def test_range_of_node_ports_is_two_ports() -> None:
    options = LoadBalancerOptions(node_port_range="1000-2000")
    assert (options.node_port_min, options.node_port_max) == (1000, 2000)


def test_health_checks_at_load_balancers_need_health_checks() -> None:
    asked = LoadBalancerOptions(enable_health_check_loadbalancer_ip=True)
    assert asked.health_check_loadbalancer_ip
    off = {"enable_health_check_nodeport": False, "enable_health_check_loadbalancer_ip": True}
    assert not LoadBalancerOptions.model_validate(off).health_check_loadbalancer_ip


def test_the_agents_parts_hold_the_options_themselves() -> None:
    """A copy could leave an option behind."""
    config = AgentConfig()
    agent = build(new_context(config, Tracker()), config, MemoryDatapath(LBMaps.fake(16)))
    assert agent.loadbalancer.writer.config is config
    assert agent.loadbalancer.operations.config is config

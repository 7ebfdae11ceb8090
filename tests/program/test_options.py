# SPDX-License-Identifier: Apache-2.0
"""Flags made from the options model: names, defaults, environment, errors that name the flag."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from cilia.agent.config import AgentConfig
from cilia.program.options import options_of, validated


def parsed(arguments: list[str], env: dict[str, str] | None = None) -> AgentConfig:
    seen: list[AgentConfig] = []

    @click.command()
    @options_of(AgentConfig)
    def command(**given: object) -> None:
        seen.append(validated(AgentConfig, given))

    result = CliRunner().invoke(command, arguments, env=env, catch_exceptions=False)
    if result.exit_code:
        raise click.UsageError(result.output)
    return seen[0]


def test_every_option_of_the_model_has_a_flag() -> None:
    config = parsed(["--bpf-lb-map-max=100", "--enable-ipv6=false", "--node-name", "n1"])
    assert (config.bpf_lb_map_max, config.enable_ipv6, config.node_name) == (100, False, "n1")
    assert config.enable_ipv4 is True


def test_a_bare_boolean_flag_means_true() -> None:
    assert parsed(["--dry-run"]).dry_run is True


def test_environment_sets_an_option_when_no_flag_does() -> None:
    assert parsed([], {"CILIA_BPF_LB_MAP_MAX": "99"}).bpf_lb_map_max == 99
    assert parsed(["--bpf-lb-map-max=50"], {"CILIA_BPF_LB_MAP_MAX": "99"}).bpf_lb_map_max == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bpf-lb-map-max=1"], "--bpf-lb-map-max"),
        (["--instance=../etc"], "--instance"),
        (["--metrics-address=nonsense"], "expected HOST:PORT"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_a_wrong_option_is_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        parsed(arguments)


def test_addresses_without_a_host_are_loopback() -> None:
    assert parsed(["--metrics-address=:9962"]).metrics_address == "127.0.0.1:9962"
    assert parsed(["--metrics-address=0.0.0.0:9962"]).metrics_address == "0.0.0.0:9962"

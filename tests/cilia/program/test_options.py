# SPDX-License-Identifier: Apache-2.0
"""Options from flags, environment and a directory: precedence, origin, errors that name them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cilia.agent.config import AgentConfig
from cilia.program.options import from_process, options_of, resolved


def parsed(arguments: list[str], env: dict[str, str] | None = None) -> AgentConfig:
    seen: list[AgentConfig] = []

    @click.command()
    @options_of(AgentConfig)
    def command(**given: object) -> None:
        seen.append(from_process(AgentConfig, given))

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
        (["--prometheus-serve-addr=nonsense"], "expected HOST:PORT"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_a_wrong_option_is_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        parsed(arguments)


def test_addresses_without_a_host_are_loopback() -> None:
    assert parsed(["--prometheus-serve-addr=:9962"]).prometheus_serve_addr == "127.0.0.1:9962"
    assert parsed(["--prometheus-serve-addr=0.0.0.0:9962"]).prometheus_serve_addr == "0.0.0.0:9962"


def directory(tmp_path: Path, **files: str) -> Path:
    """As a ConfigMap is mounted: the names are links into a hidden directory."""
    content = tmp_path / "..2026"
    content.mkdir()
    (tmp_path / "..data").symlink_to(content)
    for name, text in files.items():
        (content / name.replace("_", "-")).write_text(text)
        (tmp_path / name.replace("_", "-")).symlink_to(Path("..data") / name.replace("_", "-"))
    return tmp_path


def origins(config: AgentConfig) -> dict[str, str]:
    return {row.name: row.origin for row in config.settings() if row.origin != "default"}


def test_a_flag_beats_the_environment_and_that_the_directory(tmp_path: Path) -> None:
    made = directory(tmp_path, enable_ipv6="false\n", bpf_lb_map_max="100", devices="eth0")
    environ = {"CILIA_BPF_LB_MAP_MAX": "200", "CILIA_DEVICES": "eth1"}
    config = resolved(AgentConfig, {"config_dir": made, "devices": "eth2"}, environ)
    assert (config.enable_ipv6, config.bpf_lb_map_max, config.devices) == (False, 200, "eth2")
    assert origins(config) == {
        "bpf-lb-map-max": "environment CILIA_BPF_LB_MAP_MAX",
        "config-dir": "flag --config-dir",
        "devices": "flag --devices",
        "enable-ipv6": f"file {made}/enable-ipv6",
    }


def test_settings_say_value_and_default(tmp_path: Path) -> None:
    config = resolved(AgentConfig, {"bpf_root": Path("/b")}, {"CILIA_ENABLE_IPV4": "false"})
    rows = {row.name: row for row in config.settings()}
    assert (rows["enable-ipv4"].value, rows["enable-ipv4"].default) == (False, True)
    assert (rows["bpf-root"].value, rows["bpf-root"].default) == ("/b", "/sys/fs/bpf")
    assert rows["state-dir"].value is None and rows["state-dir"].origin == "default"
    assert list(rows) == sorted(rows)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    made = directory(tmp_path, enable_ipv5="true", bpf_lb_map_max="many", zzz_zzz="1")
    with pytest.raises(click.UsageError) as refused:
        resolved(AgentConfig, {"config_dir": made}, {"CILIA_ENABLE_IPV44": "1"})
    told = refused.value.message.splitlines()
    assert told[0] == "environment CILIA_ENABLE_IPV44 is no option: is CILIA_ENABLE_IPV4 meant?"
    assert told[1] == f"{made}/enable-ipv5 is no option: is enable-ipv6 meant?"
    assert told[2] == f"{made}/zzz-zzz is no option"
    assert "--bpf-lb-map-max" in told[3] and f"file {made}/bpf-lb-map-max" in told[3]
    assert len(told) == 4


def test_variables_of_others_are_left_alone() -> None:
    environ = {"CILIA_METRICS_SERVICE_HOST": "10.0.0.1", "CILIA_SOCKET": "/s", "CILIUM_DEBUG": "1"}
    assert resolved(AgentConfig, {}, environ) == AgentConfig()


def test_an_empty_file_sets_texts_only(tmp_path: Path) -> None:
    made = directory(tmp_path, state_dir="", bpf_lb_map_max="", devices="")
    config = resolved(AgentConfig, {"config_dir": made}, {})
    assert config.state_dir is None and config.bpf_lb_map_max == 65_536
    assert origins(config).keys() == {"config-dir", "devices"}


def test_a_directory_that_is_not_there_is_named() -> None:
    with pytest.raises(click.UsageError, match="--config-dir=/nowhere"):
        resolved(AgentConfig, {"config_dir": Path("/nowhere")}, {})

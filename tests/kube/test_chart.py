# SPDX-License-Identifier: Apache-2.0
"""The chart: linted, rendered, accepted by a real API server; its options are options."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cilia.agent.build_config import write_directory
from cilia.agent.config import AgentConfig
from cilia.cli.install.manifests import Values, manifests
from cilia.operator.command import operator
from cilia.operator.config import OperatorConfig
from cilia.program.errors import ProgramError
from cilia.program.options import resolved, validated
from tests.install.rendered import CHART, RENDERED, helm, template

from .apiserver import ApiServer

pytestmark = pytest.mark.timeout(120)

HOST = "--set=k8sServiceHost=10.0.0.1"
# Everything that is off by default, on.
ALL = (
    HOST,
    "--set=prometheus.enabled=true,operator.prometheus.enabled=true,dashboards.enabled=true",
    "--set=localRedirectPolicies.enabled=true,ipv6.enabled=false,loadBalancer.algorithm=maglev",
    "--set=localRedirectPolicies.addressMatcherCIDRs={169.254.0.0/16,fd00::/8}",
    "--set=imagePullSecrets[0].name=pull,resources.requests.cpu=100m,podLabels.a=b",
    "--set=podAnnotations.c=d,extraArgs[0]=--log-format=json,k8sServicePort=443",
    "--set=podNetwork.enabled=true,ipMasqAgent.enabled=true,cni.configMap=own-list,MTU=1400",
)
POD_NETWORK = (HOST, "--set=podNetwork.enabled=true")


def documents(text: str) -> list[dict[str, Any]]:
    return [form for form in yaml.safe_load_all(text) if form]


def of(forms: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (f for f in forms if f["kind"] == kind and f["metadata"]["name"] == name)
    return found


def test_lint_passes() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), HOST)
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *ALL)


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.name)
def test_checked_in_manifests_are_what_the_chart_renders(path: Path) -> None:
    assert path.read_text() == RENDERED[path](), "run `make rendered`"


@pytest.mark.parametrize("arguments", [(HOST,), ALL], ids=["defaults", "all"])
def test_options_of_the_chart_are_options_of_the_programs(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    forms = documents(template(*arguments))
    write_directory(tmp_path, of(forms, "ConfigMap", "cilia-config")["data"])
    config = resolved(AgentConfig, {"config_dir": tmp_path / "current"}, {})
    assert config.k8s_api_server == f"https://10.0.0.1:{443 if arguments is ALL else 6443}"
    pod = of(forms, "Deployment", "cilia-operator")["spec"]["template"]["spec"]
    with click.Context(operator):
        given = operator.make_context("operator", list(pod["containers"][0]["args"])).params
    assert validated(OperatorConfig, given).k8s_namespace == "kube-system"


def options_and_mounts(*arguments: str) -> tuple[AgentConfig, dict[str, tuple[str, str]]]:
    """The agent's options, and by mount path in its container the node's path and `rw` or `ro`."""
    forms = documents(template(*arguments))
    given = of(forms, "ConfigMap", "cilia-config")["data"]
    pod = of(forms, "DaemonSet", "cilia")["spec"]["template"]["spec"]
    paths = {v["name"]: v.get("hostPath", {}).get("path", "") for v in pod["volumes"]}
    (agent,) = pod["containers"]
    mounts = {
        mount["mountPath"]: (paths[mount["name"]], "ro" if mount.get("readOnly") else "rw")
        for mount in agent["volumeMounts"]
    }
    options = {name.replace("-", "_"): value for name, value in given.items() if value}
    return validated(AgentConfig, options), mounts


def test_a_pod_network_has_the_directories_of_its_options() -> None:
    """At the node's own paths where the options are told on, to the runtime or to a cleanup."""
    off, before = options_and_mounts(HOST)
    config, mounts = options_and_mounts(*POD_NETWORK)
    assert config.pod_network and not off.pod_network
    for path in (config.cni_bin_path, config.cni_conf_path, config.run_dir):
        assert mounts[str(path)] == (str(path), "rw")
    assert mounts[f"{config.procfs}/sys/net"] == ("/proc/sys/net", "rw")
    added = {node for node, _ in mounts.values()} - {node for node, _ in before.values()}
    assert added == {"/opt/cni/bin", "/etc/cni/net.d", "/proc/sys/net"}


def test_a_pod_network_needs_no_right_in_the_kernel_that_services_do_not() -> None:
    def security(*arguments: str) -> list[Any]:
        pod = of(documents(template(*arguments)), "DaemonSet", "cilia")["spec"]["template"]["spec"]
        return [c["securityContext"] for c in (*pod["initContainers"], *pod["containers"])]

    assert security(*POD_NETWORK) == security(HOST)
    *_, agent = security(*POD_NETWORK)
    assert "privileged" not in agent and agent["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize(
    ("values", "option", "path"),
    [
        ("cni.install=false", "cni_bin_path", "/opt/cni/bin"),
        ("cni.customConf=true", "cni_conf_path", "/etc/cni/net.d"),
    ],
)
def test_what_somebody_else_installs_is_not_touched(values: str, option: str, path: str) -> None:
    config, mounts = options_and_mounts(*POD_NETWORK, f"--set={values}")
    assert getattr(config, option) is None
    assert path not in mounts


def test_lists_and_prefixes_of_ones_own_come_from_config_maps() -> None:
    values = "cni.configMap=own,cni.configMapKey=list,ipMasqAgent.enabled=true"
    config, mounts = options_and_mounts(*POD_NETWORK, f"--set={values}")
    assert config.read_cni_conf is not None and config.read_cni_conf.name == "list"
    for path in (config.read_cni_conf, config.ip_masq_agent_config_path):
        assert mounts[str(path.parent)] == ("", "ro")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ("extraConfig.pod-network=true", "say podNetwork.enabled=true"),
        (
            "podNetwork.enabled=true,cni.customConf=true,cni.configMap=own",
            "cni.configMap would not be used",
        ),
    ],
)
def test_values_that_cannot_be_in_force_are_refused(values: str, why: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        template(HOST, f"--set={values}")
    assert why in refused.value.stderr


def test_an_option_that_is_none_does_not_start_an_agent(tmp_path: Path) -> None:
    forms = documents(template(HOST, "--set=extraConfig.bpf-lb-map-maxx=1"))
    with pytest.raises(ProgramError, match="bpf-lb-map-maxx is no option: is bpf-lb-map-max meant"):
        write_directory(tmp_path, of(forms, "ConfigMap", "cilia-config")["data"])


def test_the_address_of_the_api_server_is_asked_for() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        template()
    assert "k8sServiceHost" in refused.value.stderr


@pytest.mark.parametrize("arguments", [(HOST,), ALL], ids=["defaults", "all"])
def test_the_api_server_accepts_the_manifests(
    api_server: ApiServer, namespace: str, arguments: tuple[str, ...]
) -> None:
    text = template(*arguments).replace("namespace: kube-system", f"namespace: {namespace}")
    text = text.replace("name: cilia\n", f"name: cilia-{namespace}\n")
    apply = ("apply", "--server-side", "--validate=strict", "-f", "-")
    dry = api_server.kubectl(*apply, "--dry-run=server", text=text)
    assert dry.count("serverside-applied (server dry run)") == len(documents(text))
    done = api_server.kubectl(*apply, text=text)
    assert done.count("serverside-applied") == len(documents(text))
    api_server.kubectl("delete", "-f", "-", "--wait=false", text=text)


def test_the_dashboard_is_json_and_asks_for_metrics_of_ours() -> None:
    form = of(documents(template(*ALL)), "ConfigMap", "cilia-dashboard")
    dashboard = json.loads(form["data"]["cilia.json"])
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert queries and all("cilia_" in query for query in queries)


def test_a_change_of_options_starts_agents_anew() -> None:
    def annotations(*arguments: str) -> dict[str, str]:
        pods = of(documents(template(HOST, *arguments)), "DaemonSet", "cilia")["spec"]["template"]
        return dict(pods["metadata"]["annotations"])

    assert annotations() == annotations()
    assert annotations() != annotations("--set=bpf.lbMapMax=1024")


def test_the_install_command_puts_values_where_they_belong() -> None:
    values = Values("https://10.9.9.9:6443", "net", "r/a:1", "r/o:1", 1, {"devices": "eth1"})
    forms = manifests(values)
    text = yaml.safe_dump_all(forms)
    assert "kube-system" not in text and "api-server.invalid" not in text
    assert forms[0]["kind"] == "Namespace"
    assert of(forms, "ConfigMap", "cilia-config")["data"]["devices"] == "eth1"
    pods = of(forms, "DaemonSet", "cilia")["spec"]["template"]["spec"]
    images = {c["image"] for c in [*pods["initContainers"], *pods["containers"]]}
    assert images == {"r/a:1"}
    deployment = of(forms, "Deployment", "cilia-operator")["spec"]
    assert deployment["replicas"] == 1
    assert "--k8s-namespace=net" in deployment["template"]["spec"]["containers"][0]["args"]

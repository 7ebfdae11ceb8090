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
)


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

# SPDX-License-Identifier: Apache-2.0
"""`cilia uninstall`: first the nodes are cleaned, by the pods that are there, then all objects go.

What an agent put in force stays in force without it, and would send traffic to pods that are long
gone. So the DaemonSet is told to run `cilia cleanup` in place of the agent, on all nodes at once,
and a pod that has done so is ready; only then is it deleted. A node hands its Services back first,
so that whoever else serves them gets each new connection while known ones end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cilia.cli.install.access import kubeconfig_option, namespace_option, on_cluster
from cilia.cli.install.install import wait_until_complete
from cilia.cli.install.manifests import AGENT, Values, manifests
from cilia.cli.install.objects import delete, named, path_of
from cilia.cli.install.objects import read as read_object
from cilia.k8s.writing import WritingClient

__all__ = ["cleaning", "uninstall"]

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# How long connections that a node translates may take to end, before they are broken.
HAND_BACK_S = 30
LEASE = "cilia-operator-resource-lock"


@click.command()
@kubeconfig_option
@namespace_option
@click.option("--keep-datapath", is_flag=True, help="Leave in force what is in force on nodes.")
@click.option("--wait-duration", type=int, default=300, show_default=True, metavar="SECONDS")
@click.option("--dry-run", is_flag=True, help="Ask the API server, change nothing.")
def uninstall(
    kubeconfig: Path | None,
    namespace: str,
    keep_datapath: bool,
    wait_duration: int,
    dry_run: bool,
) -> None:
    """Clean all nodes, then remove what `cilia install` made.

    From then on Services are not served unless somebody else does: install kube-proxy first. Kinds
    (CustomResourceDefinitions) and their objects stay, and so does a namespace.

    \b
    Examples:
      cilia uninstall --dry-run
      cilia uninstall
    """

    async def work(client: WritingClient) -> None:
        values = Values(api_server="", namespace=namespace)
        forms = [form for form in manifests(values) if form["kind"] != "Namespace"]
        if not keep_datapath and not dry_run:
            await _clean_nodes(client, forms, namespace, wait_duration)
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE, "namespace": namespace},
        }
        for form in [*reversed(forms), lease]:
            done = await delete(client, form, dry_run=dry_run)
            click.echo(f"{named(form)} {done.value}{' (dry run)' if dry_run else ''}")

    on_cluster(kubeconfig, work)


async def _clean_nodes(
    client: WritingClient, forms: list[dict[str, Any]], namespace: str, timeout_s: float
) -> None:
    """Raises ClickException when a node could not be cleaned; nothing is deleted then."""
    (agents,) = (form for form in forms if form["kind"] == "DaemonSet")
    (operators,) = (form for form in forms if form["kind"] == "Deployment")
    found = await read_object(client, agents)
    if found is None:
        return
    await delete(client, operators, dry_run=False)
    await client.merge(path_of(agents), cleaning(found))
    click.echo("nodes are being cleaned")
    rollout = await wait_until_complete(client, namespace, timeout_s, [AGENT])
    if not rollout.complete([AGENT]):
        raise click.ClickException(
            f"not all nodes are clean after {timeout_s} s; --keep-datapath goes on without"
        )


def cleaning(daemon_set: dict[str, Any]) -> dict[str, Any]:
    """The patch that makes agents clean their node, all at once; a clean one is ready."""
    (agent,) = daemon_set["spec"]["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in agent["volumeMounts"]}
    places = f"--bpf-root={mounts['bpf']} --state-dir={mounts['run']}"
    clean = f"cilia cleanup --wait --hand-back={HAND_BACK_S} {places}"
    container = {key: value for key, value in agent.items() if key not in ("args", *PROBES)} | {
        "command": ["/bin/sh", "-c", f"{clean} && touch /tmp/clean && exec sleep infinity"],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/clean"]}, "periodSeconds": 1},
    }
    pod = {"initContainers": None, "containers": [container]}
    all_at_once = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}}
    return {"spec": {"updateStrategy": all_at_once, "template": {"spec": pod}}}

# SPDX-License-Identifier: Apache-2.0
"""`cilia install`: the rendered chart, applied to a cluster, object by object."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path

import anyio
import click

from cilia.cli.install.access import kubeconfig_option, namespace_option, on_cluster
from cilia.cli.install.manifests import Values, manifests, reachable
from cilia.cli.install.objects import apply, named
from cilia.cli.install.rollout import ALL, Rollout, read_rollout
from cilia.k8s.client import Client
from cilia.k8s.writing import WritingClient

__all__ = ["install", "wait_until_complete"]

# Progress of a rollout is asked for this often: two small objects.
LOOK_S = 1.0


@click.command()
@kubeconfig_option
@namespace_option
@click.option(
    "--api-server",
    metavar="URL",
    help="Where nodes reach the API server without any Service; default: as in the kubeconfig.",
)
@click.option("--image", default="", help="Image of the agent; default: cilia of this version.")
@click.option("--operator-image", default="", help="Image of the operator.")
@click.option(
    "--config",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the agent (docs/configuration.md); may be repeated.",
)
@click.option("--wait", is_flag=True, help="Until all pods are ready.")
@click.option("--wait-duration", type=int, default=300, show_default=True, metavar="SECONDS")
@click.option("--dry-run", is_flag=True, help="Ask the API server, change nothing.")
def install(
    kubeconfig: Path | None,
    namespace: str,
    api_server: str | None,
    image: str,
    operator_image: str,
    options: tuple[str, ...],
    wait: bool,
    wait_duration: int,
    dry_run: bool,
) -> None:
    """Install on the cluster of a kubeconfig, or bring an installation up to date.

    Idempotent. Says of each object whether it was created, changed or left unchanged. More can be
    set with the Helm chart, install/helm/cilia.

    \b
    Examples:
      cilia install --wait
      cilia install --api-server https://10.0.0.1:6443 --dry-run
      cilia install --config bpf-lb-map-max=262144 --config devices=eth+
    """

    named_options = dict(map(_option, options))

    async def work(client: WritingClient) -> Rollout | None:
        values = Values(
            api_server=_server(api_server or str(client.servers.current)),
            namespace=namespace,
            image=image,
            operator_image=operator_image,
            operator_replicas=min(2, await _nodes(client)),
            options=named_options,
        )
        for form in manifests(values):
            done = await apply(client, form, dry_run=dry_run)
            click.echo(f"{named(form)} {done.value}{' (dry run)' if dry_run else ''}")
        if dry_run or not wait:
            return None
        return await wait_until_complete(client, namespace, wait_duration)

    rollout = on_cluster(kubeconfig, work)
    if rollout is not None and not rollout.complete():
        raise click.ClickException(f"not ready after {wait_duration} s")


def _server(url: str) -> str:
    if not reachable(url):
        raise click.UsageError(
            f"{url} is this machine's own address of the API server: name the one that nodes reach"
            " with --api-server"
        )
    return url


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--config {text}: expected NAME=VALUE")
    if name == "pod-network":
        raise click.UsageError(
            f"--config {text}: agents need rights and directories of their nodes for it, which the"
            " Helm chart gives them (install/helm/cilia with podNetwork.enabled=true)"
        )
    return name, value


async def _nodes(client: WritingClient) -> int:
    """At least 1: nodes may come later."""
    body = json.loads(await client.fetch("/api/v1/nodes", {"limit": 2}))
    return max(1, len(body["items"]))


async def wait_until_complete(
    client: Client,
    namespace: str,
    timeout_s: float,
    names: Collection[str] = ALL,
    tell: Callable[[str], None] = click.echo,
) -> Rollout:
    """Tells each change; returns when these parts are ready, or when the time is over."""
    until = time.monotonic() + timeout_s
    told: list[str] = []
    while True:
        rollout = await read_rollout(client, namespace)
        lines = list(rollout.lines())
        for line in lines:
            if line not in told:
                tell(line)
        told = lines
        if rollout.complete(names) or time.monotonic() >= until:
            return rollout
        await anyio.sleep(LOOK_S)  # a watch of the pods would carry far more than is asked here

# SPDX-License-Identifier: Apache-2.0
"""`cilia status --cluster`: how far an installation is, and what stands in its way."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from cilia.cli.install.access import on_cluster
from cilia.cli.install.install import wait_until_complete
from cilia.cli.install.rollout import Rollout, read_rollout
from cilia.k8s.writing import WritingClient

__all__ = ["cluster_status"]


def cluster_status(kubeconfig: Path | None, namespace: str, wait_s: float) -> Rollout:
    """The state now, or once all is ready; each step of the waiting is told on standard error."""

    async def work(client: WritingClient) -> Rollout:
        if wait_s:
            tell = partial(click.echo, err=True)
            return await wait_until_complete(client, namespace, wait_s, tell=tell)
        return await read_rollout(client, namespace)

    return on_cluster(kubeconfig, work)

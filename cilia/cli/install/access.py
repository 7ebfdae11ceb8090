# SPDX-License-Identifier: Apache-2.0
"""The options that say which cluster, and running something against it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import click

from cilia.cluster.access_options import KubernetesOptions, open_writing_client
from cilia.k8s.errors import ApiError
from cilia.k8s.writing import WritingClient
from cilia.program.errors import ProgramError

__all__ = ["kubeconfig_option", "namespace_option", "on_cluster"]

T = TypeVar("T")

# A person waits: no thrift with requests.
QPS, BURST = 100, 200

namespace_option = click.option(
    "-n", "--namespace", default="kube-system", show_default=True, help="Where it is installed."
)


def _default_kubeconfig() -> Path:
    """As kubectl finds it; of several in KUBECONFIG the first."""
    named = os.environ.get("KUBECONFIG", "").split(":")[0]
    return Path(named) if named else Path.home() / ".kube" / "config"


kubeconfig_option = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Default: $KUBECONFIG or ~/.kube/config.",
)


def on_cluster(kubeconfig: Path | None, work: Callable[[WritingClient], Awaitable[T]]) -> T:
    """Run `work` with a client.

    Raises:
        click.ClickException: no access, no answer, or a refusal, in one sentence.
    """
    path = kubeconfig or _default_kubeconfig()
    if not path.exists():
        raise click.ClickException(f"no kubeconfig at {path}: name one with --kubeconfig")

    async def run() -> T:
        options: Any = {"k8s_client_qps": QPS, "k8s_client_burst": BURST}
        named = KubernetesOptions(k8s_kubeconfig_path=path, **options)
        async with open_writing_client(named) as client:
            return await work(client)

    try:
        return anyio.run(run)
    except (ApiError, ProgramError) as error:
        raise click.ClickException(str(error)) from None

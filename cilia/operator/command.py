# SPDX-License-Identifier: Apache-2.0
"""`cilia operator`: reads the options, runs the operator until SIGTERM."""

from __future__ import annotations

from typing import Any

import click

from cilia.operator.config import OperatorConfig
from cilia.program.foreground import run_until_signalled
from cilia.program.options import from_process, options_of


@click.command()
@options_of(OperatorConfig)
def operator(**given: Any) -> None:
    """Run the cluster-wide program in the foreground.

    Of several replicas one leads, by a Lease object; it registers our kinds at the API server.
    Nodes need no operator to go on. SIGTERM and Ctrl-C end it and give the Lease back, so that
    another replica takes over at once.

    \b
    Examples:
      cilia operator --k8s-kubeconfig-path ~/.kube/config
      cilia operator --k8s-api-server https://10.0.0.1:6443 --log-level debug
      cilia operator --config-dir /etc/cilia/operator
    """
    config = from_process(OperatorConfig, given)
    run_until_signalled(_run, config)


async def _run(config: OperatorConfig) -> int:
    from cilia.operator.run import run  # everything is imported only once the options are right

    await run(config)
    return 0

# SPDX-License-Identifier: Apache-2.0
"""`cilia agent`: reads the options, takes the lock, runs the wiring until SIGTERM."""

from __future__ import annotations

import signal
import sys
from typing import Any

import anyio
import click
import structlog

from cilia.agent.config import AgentConfig
from cilia.program import logging
from cilia.program.errors import ProgramError
from cilia.program.options import from_process, options_of

log = structlog.get_logger("agent")


@click.command()
@options_of(AgentConfig)
@click.pass_context
def agent(ctx: click.Context, /, **given: Any) -> None:
    """Run the agent of this node in the foreground.

    SIGTERM and Ctrl-C end it and leave programs, maps and pins in force; `cilia cleanup` removes
    them. A second agent on the same state directory, pins or cgroup is refused.

    \b
    Examples:
      cilia agent --k8s-manifests /etc/cilia/manifests
      cilia agent --k8s-manifests examples/quickstart --dry-run
    """
    if given["instance"] is None:
        given["instance"] = (ctx.obj or {}).get("explicit_instance")
    config = from_process(AgentConfig, given)
    logging.configure(config.log_level, config.log_format)
    from cilia.agent import run  # the wiring imports everything: only once the options are right

    refused: list[str] = []
    code = 0
    try:
        code = anyio.run(run.dry_run if config.dry_run else _until_signalled, config)
    except* ProgramError as group:  # bare or from a task group; a raise here would be a group again
        refused = [str(error) for error in group.exceptions]
    if refused:
        raise click.ClickException("; ".join(refused))
    sys.exit(code)


async def _until_signalled(config: AgentConfig) -> int:
    from cilia.agent import run

    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_signal, group.cancel_scope)
        await run.serve(config)
        group.cancel_scope.cancel()
    return 0


async def _cancel_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("ending; programs, maps and pins stay in force", signal=number.name)
            scope.cancel()

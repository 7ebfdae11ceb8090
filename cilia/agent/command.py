# SPDX-License-Identifier: Apache-2.0
"""`cilia agent`: reads the options, takes the lock, runs the wiring until SIGTERM."""

from __future__ import annotations

from typing import Any

import click

from cilia.agent.config import AgentConfig
from cilia.program.foreground import run_until_signalled
from cilia.program.options import from_process, options_of


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
    run_until_signalled(_run, config, ending=_ending)


def _ending(config: AgentConfig) -> str:
    from cilia.linux.mounts import outlives_process

    if config.dry_run or outlives_process(config.bpf_root):
        return "programs, maps and pins stay in force"
    return "programs, maps and pins end with the mount namespace of this process"


async def _run(config: AgentConfig) -> int:
    if config.dry_run:
        from cilia.agent import (
            run,
        )  # the wiring imports everything: only once the options are right

        return await run.dry_run(config)

    from cilia.agent.state_directory import locked

    with locked(config) as lock:  # before that, which takes most of a second
        from cilia.agent import run

        await run.serve(config, lock)
    return 0

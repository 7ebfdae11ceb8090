# SPDX-License-Identifier: Apache-2.0
"""`cilia config`: every option with its value and where it came from.

Of the running agent, which tells it over its socket; or with --here what an agent would get that
starts now, in this environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from cilia.agent.config import AgentConfig
from cilia.api.client import ApiError, request
from cilia.program.options import from_process
from cilia.program.output import show
from statedb.shown.columns import layout

HEADINGS = ["Option", "Value", "Origin"]


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.option("--changed", is_flag=True, help="Only options that somebody set.")
@click.option("--here", is_flag=True, help="What an agent would get that starts here and now.")
@click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    help="With --here: as the agent would be given it.",
)
@click.pass_context
def config(
    ctx: click.Context, output: str, changed: bool, here: bool, config_dir: Path | None
) -> None:
    """Every option of the running agent, its value, and where the value came from.

    \b
    Examples:
      cilia config
      cilia config --changed -o yaml
      cilia config --here --config-dir /etc/cilia/config
    """
    if config_dir and not here:
        raise click.UsageError("--config-dir goes with --here: a running agent has its own")
    rows = _here(config_dir) if here else _running(ctx.obj["socket"])
    if changed:
        rows = [row for row in rows if row["origin"] != "default"]
    lines = [[row["name"], _shown(row["value"]), row["origin"]] for row in rows]
    show(rows, output, layout([HEADINGS, *lines]))


def _here(config_dir: Path | None) -> list[dict[str, Any]]:
    settings = from_process(AgentConfig, {"config_dir": config_dir}).settings()
    rows: list[dict[str, Any]] = msgspec.to_builtins(settings)
    return rows


def _running(socket: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = request(socket, "/config")
    except ApiError as error:
        raise click.ClickException(str(error)) from None
    return rows


def _shown(value: Any) -> str:
    """As the option would be written."""
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value in (None, "") else str(value)

# SPDX-License-Identifier: Apache-2.0
"""`cilia identity`: the number of each set of labels."""

from __future__ import annotations

from typing import Any, Final

import click

from cilia.program.output import pod_network_rows, show
from statedb.shown.columns import layout

__all__ = ["identity"]

_HEADINGS: Final = ["ID", "Labels"]
_OUTPUT: Final = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table"
)


@click.group()
def identity() -> None:
    """List security identities: numbers of sets of labels."""


@identity.command(name="list")
@_OUTPUT
@click.argument("labels", nargs=-1)
@click.pass_context
def list_(ctx: click.Context, output: str, labels: tuple[str, ...]) -> None:
    """Every identity that this node knows; with LABELS those that have all of them.

    \b
    Examples:
      cilia identity list
      cilia identity list k8s:app=web
    """
    rows = pod_network_rows(ctx.obj["socket"], "identities")
    _show([row for row in rows if set(labels) <= set(row["Labels"])], output)


@identity.command()
@_OUTPUT
@click.argument("number", metavar="ID", type=int)
@click.pass_context
def get(ctx: click.Context, output: str, number: int) -> None:
    """The labels of one identity.

    \b
    Example:
      cilia identity get 256
    """
    rows = [row for row in pod_network_rows(ctx.obj["socket"], "identities") if row["ID"] == number]
    if not rows:
        raise click.ClickException(f"this node knows no identity {number}")
    _show(rows, output)


def _show(rows: list[dict[str, Any]], output: str) -> None:
    cells = [
        [str(row["ID"]) if not line else "", label]
        for row in rows
        for line, label in enumerate(row["Labels"])
    ]
    show(rows, output, layout([_HEADINGS, *cells]))

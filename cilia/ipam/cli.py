# SPDX-License-Identifier: Apache-2.0
"""`cilia ipam`: the addresses of this node's pods."""

from __future__ import annotations

from collections import Counter
from typing import Final

import click

from cilia.program.output import pod_network_rows, show
from statedb.shown.columns import layout

__all__ = ["ipam"]

_HEADINGS: Final = ["IP", "Owner", "Endpoint", "State"]


@click.group()
def ipam() -> None:
    """List the addresses of this node's pods."""


@ipam.command(name="list")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.pass_context
def list_(ctx: click.Context, output: str) -> None:
    """Every address that is taken, with its owner.

    \b
    Examples:
      cilia ipam list
      cilia ipam list -o json
    """
    rows = pod_network_rows(ctx.obj["socket"], "ip-allocations")
    cells = [[r["IP"], r["Owner"], str(r["EndpointID"] or "-"), r["State"]] for r in rows]
    counts = Counter(("IPv6" if ":" in r["IP"] else "IPv4", r["State"]) for r in rows)
    summary = [f"{family}: {count} {state}" for (family, state), count in sorted(counts.items())]
    show(rows, output, "\n".join([*summary, "", layout([_HEADINGS, *cells])]))

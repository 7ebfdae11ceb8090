# SPDX-License-Identifier: Apache-2.0
"""`cilia lrp`: local redirect policies, what they redirect, and to which pods of this node."""

from __future__ import annotations

from typing import Any

import click

from cilia.program.output import show
from cilia.program.unread import tell_unread
from statedb.errors import StateDBError
from statedb.shown.columns import layout
from statedb.web.remote import RemoteDB

_HEADINGS = ["Policy", "Type", "Matches", "Service", "Frontend", "Backends"]


@click.group()
def lrp() -> None:
    """List local redirect policies."""


@lrp.command(name="list")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.pass_context
def list_(ctx: click.Context, output: str) -> None:
    """Every policy, with the frontends that it redirects now and their backends.

    \b
    Examples:
      cilia lrp list
      cilia lrp list -o yaml
    """
    try:
        rows = _policies(ctx.obj["socket"])
    except StateDBError as error:
        raise click.ClickException(str(error)) from None
    show(rows, output, layout([_HEADINGS, *(cells for row in rows for cells in _lines(row))]))


def _policies(socket: str) -> list[dict[str, Any]]:
    """The policies' rows, each with its ``Redirected`` frontends."""
    db = RemoteDB(socket)
    txn = db.read_txn()
    redirected: dict[str, list[dict[str, Any]]] = {}
    for fe in db.table("frontends").all(txn):
        service = fe["RedirectTo"] or fe["ServiceName"]
        backends = [be["Address"] for be in fe["Backends"]]
        found = {"Frontend": fe["Address"], "Backends": backends}
        redirected.setdefault(service, []).append(found)
    tell_unread(db.table("frontends").pending_initializers(txn), "bpf lb list")
    return [
        {**policy, "Redirected": redirected.get(f"{policy['Name']}:local-redirect", [])}
        for policy in db.table("localredirectpolicies").all(txn)
    ]


def _lines(row: dict[str, Any]) -> list[list[str]]:
    """One line a frontend; what the policy has to say stands in the first."""
    first = [row["Name"], row["Type"], row["FrontendType"], row["Service"] or ""]
    shown = [[fe["Frontend"], ", ".join(fe["Backends"])] for fe in row["Redirected"]]
    lines = shown or [["nothing now", ""]]
    return [[*(first if not i else [""] * 4), *cells] for i, cells in enumerate(lines)]

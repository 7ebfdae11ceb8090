# SPDX-License-Identifier: Apache-2.0
"""`cilia service`: Services as people think of them: an address, its kind, who serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cilia.datapath.cli.bpf_flows import BPF_ROOT
from cilia.program.output import show
from cilia.program.unread import tell_unread
from statedb.errors import StateDBError
from statedb.shown.columns import layout
from statedb.web.remote import RemoteDB


@click.group()
def service() -> None:
    """List Services, their frontends and backends, and who talks to them."""


@service.command(name="list")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.option("-n", "--namespace", metavar="NAME", help="Only Services of this namespace.")
@click.pass_context
def list_(ctx: click.Context, output: str, namespace: str | None) -> None:
    """Every frontend with its id in the datapath, its Service and its backends.

    \b
    Examples:
      cilia service list
      cilia service list -n kube-system -o yaml
    """
    try:
        rows = _frontends(ctx.obj["socket"], namespace)
    except StateDBError as error:
        raise click.ClickException(str(error)) from None
    show(rows, output, layout([_HEADINGS, *(cells for row in rows for cells in _lines(row))]))


@service.command()
@BPF_ROOT
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
@click.option("--draining", is_flag=True, help="Only backends that get no new connections.")
@click.option(
    "--netns-directory",
    "netns",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Where namespaces of pods are named; default: /run/netns, and those of processes.",
)
@click.pass_context
def connections(
    ctx: click.Context, bpf_root: Path, output: str, draining: bool, netns: tuple[Path, ...]
) -> None:
    """Open connections of this node and its pods, by frontend and backend.

    A backend that terminates is empty when it is not listed any more.

    \b
    Examples:
      cilia service connections
      cilia service connections --draining -o json
    """
    from cilia.loadbalancer.cli.service_connections import show  # loads libbpf

    show(bpf_root / ctx.obj["instance"] / "maps", ctx.obj["socket"], netns, draining, output)


def _frontends(socket: str, namespace: str | None) -> list[dict[str, Any]]:
    db = RemoteDB(socket)
    txn = db.read_txn()
    rows: list[dict[str, Any]] = list(db.table("frontends").all(txn))
    tell_unread(db.table("frontends").pending_initializers(txn), "bpf lb list")
    if namespace is None:
        return rows
    return [row for row in rows if row["ServiceName"].split("/")[-2] == namespace]


_HEADINGS = ["ID", "Frontend", "Service Type", "Service", "Backend"]


def _lines(row: dict[str, Any]) -> list[list[str]]:
    """One line a backend; what the frontend has to say stands in the first."""
    first = [str(row["ID"]), row["Address"], row["Type"], row["ServiceName"]]
    backends = [
        f"{number} => {be['Address']} ({STATES[be['State']]})"
        for number, be in enumerate(row["Backends"], 1)
    ] or ["no backends"]
    lines = [*refusal(row), *backends]
    return [[*(first if not i else [""] * 4), text] for i, text in enumerate(lines)]


def refusal(row: dict[str, Any]) -> list[str]:
    """Return a line that says why a frontend is not in force as its row is."""
    status = row["Status"]
    words = {"refused": "refused", "error": "not as it is here"}.get(status["kind"])
    return [f"{words}: {status['error']}"] if words else []


#: By the number that tables give to a state of a backend.
STATES = ["active", "terminating", "terminating", "quarantined", "maintenance", "invalid"]

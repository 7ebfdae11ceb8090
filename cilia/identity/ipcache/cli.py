# SPDX-License-Identifier: Apache-2.0
"""`cilia ip`: which identity is behind which address, and who says so."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any, Final

import click

from cilia.program.output import pod_network_rows, show
from statedb.shown.columns import layout

__all__ = ["ip"]

TABLE: Final = "ipcache"
#: Of the table: what covers an address, or is inside a prefix.
INDEX: Final = "covering"

_HEADINGS: Final = ["IP", "Identity", "Source"]
_WIDE: Final = ["Host", "Encrypt key", "Owner", "Shadowed", "Status"]
_NUMERIC: Final = click.option(
    "-n", "--numeric", is_flag=True, help="Numbers of identities, not their labels."
)
_OUTPUT: Final = click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table"
)

Row = dict[str, Any]
#: Labels by the number of the identity.
Labels = dict[int, list[str]]


@click.group()
def ip() -> None:
    """List which identity is behind which address, and who says so.

    `cilia bpf ipcache` has the same as the datapath knows it, also while no agent runs.
    """


@ip.command(name="list")
@click.argument("prefix", required=False)
@click.option(
    "-l", "--labels", "wanted", multiple=True, metavar="LABEL", help="Only identities with it."
)
@_NUMERIC
@_OUTPUT
@click.pass_context
def list_(
    ctx: click.Context, prefix: str | None, wanted: tuple[str, ...], numeric: bool, output: str
) -> None:
    """Every prefix with its identity; with PREFIX those inside it.

    \b
    Examples:
      cilia ip list
      cilia ip list 10.244.1.0/24 -o wide
      cilia ip list --labels reserved:host
    """
    socket = ctx.obj["socket"]
    if prefix is None:
        rows = pod_network_rows(socket, TABLE)
    else:
        rows = pod_network_rows(socket, TABLE, "prefix", prefix, INDEX)
    labels = _labels(socket)
    rows = [row for row in rows if set(wanted) <= set(labels.get(row["Identity"], ()))]
    if not rows and output in ("table", "wide"):
        raise click.ClickException(
            "no prefix is such: `cilia ip list` shows all, `cilia identity list` their labels"
        )
    _show(sorted(rows, key=_order), labels, output, numeric=numeric)


@ip.command()
@click.argument("address")
@_NUMERIC
@_OUTPUT
@click.pass_context
def get(ctx: click.Context, address: str, numeric: bool, output: str) -> None:
    """The longest prefix that covers ADDRESS (or a prefix), and its identity.

    \b
    Examples:
      cilia ip get 10.244.1.17
      cilia ip get fd00:244::11 -o yaml
    """
    socket = ctx.obj["socket"]
    rows = pod_network_rows(socket, TABLE, "get", address, INDEX)
    if not rows:
        raise click.ClickException(f"no prefix covers {address}: `cilia ip list` shows all")
    _show(rows, _labels(socket), output, numeric=numeric)


def _labels(socket: str) -> Labels:
    return {row["ID"]: row["Labels"] for row in pod_network_rows(socket, "identities")}


def _order(row: Row) -> tuple[int, int, int, int]:
    """The field's: the length first, then the address."""
    network = ip_network(row["Prefix"])
    return (
        network.prefixlen,
        network.version,
        int(network.network_address),
        row["ClusterID"],
    )


def _show(rows: list[Row], labels: Labels, output: str, *, numeric: bool) -> None:
    wide = output == "wide"
    headings = [*_HEADINGS, *(_WIDE if wide else ())]
    cells = [line for row in rows for line in _lines(row, labels, wide=wide, numeric=numeric)]
    forms = [_form(row) for row in rows]
    show(forms, "table" if wide else output, layout([headings, *cells]))


def _lines(row: Row, labels: Labels, *, wide: bool, numeric: bool) -> list[list[str]]:
    """The row of a prefix, with a line more for each further label of its identity."""
    number = row["Identity"]
    first, *others = [str(number)] if numeric else labels.get(number) or [str(number)]
    cells = [_cidr(row), first, row["Source"]]
    if wide:
        status = row["Status"] + (f" ({row['Error']})" if row["Error"] else "")
        shadowed = ", ".join(claim["Owner"] for claim in row["Shadowed"])
        key = str(row["EncryptKey"])
        cells += [row["HostIP"] or "-", key, row["Owner"], shadowed or "-", status]
    return [cells, *(["", label, *[""] * (len(cells) - 2)] for label in others)]


def _cidr(row: Row) -> str:
    cluster = f"@{row['ClusterID']}" if row["ClusterID"] else ""
    return f"{row['Prefix']}{cluster}"


def _form(row: Row) -> Row:
    """The field's form, and what it does not have."""
    return {
        "cidr": _cidr(row),
        "identity": row["Identity"],
        "hostIP": row["HostIP"],
        "encryptKey": row["EncryptKey"],
        "metadata": {
            "source": row["Source"],
            "namespace": row["Namespace"],
            "name": row["Pod"],
        },
        "owner": row["Owner"],
        "shadowed": row["Shadowed"],
        "status": row["Status"],
    }

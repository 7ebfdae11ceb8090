# SPDX-License-Identifier: Apache-2.0
"""`cilia endpoint`: the workloads of this node that have their network from us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from cilia.program.output import pod_network_rows, show
from statedb.shown.columns import layout
from tables.times import rfc3339

__all__ = ["endpoint"]

_HEADINGS: Final = ["Endpoint", "Pod", "Identity", "IPv4", "IPv6", "State"]
_WIDE: Final = ["Device", "Container", "Phases"]

Row = dict[str, Any]


@click.group()
def endpoint() -> None:
    """List the workloads of this node, and what is in force of each."""


@endpoint.command(name="list")
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table"
)
@click.option("-n", "--namespace", metavar="NAME", help="Only pods of this namespace.")
@click.pass_context
def list_(ctx: click.Context, output: str, namespace: str | None) -> None:
    """Every endpoint with its pod, identity, addresses and state.

    \b
    Examples:
      cilia endpoint list
      cilia endpoint list -n kube-system -o wide
    """
    rows = pod_network_rows(ctx.obj["socket"], "endpoints")
    rows = [row for row in rows if namespace is None or row["Namespace"] == namespace]
    wide = output == "wide"
    headings = [*_HEADINGS, *(_WIDE if wide else ())]
    cells = [[*_cells(row), *(_wide_cells(row) if wide else ())] for row in rows]
    show(rows, "table" if wide else output, layout([headings, *cells]))


@endpoint.command()
@click.argument("which", metavar="ID")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), default="yaml")
@click.pass_context
def get(ctx: click.Context, which: str, output: str) -> None:
    """All that is known of one endpoint.

    ID is its number, or one of ipv4:ADDRESS, ipv6:ADDRESS, pod-name:NAMESPACE/NAME,
    cni-attachment-id:CONTAINER[:INTERFACE], container-id:CONTAINER.

    \b
    Examples:
      cilia endpoint get 7
      cilia endpoint get pod-name:shop/web-0 -o json
    """
    show(_rows(ctx, which), output, "")


@endpoint.command()
@click.argument("which", metavar="ID")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.pass_context
def log(ctx: click.Context, which: str, output: str) -> None:
    """The last states of an endpoint, and what it waited for in each.

    ID is as in `cilia endpoint get`. A log begins anew with the agent.

    \b
    Examples:
      cilia endpoint log 7
      cilia endpoint log pod-name:shop/web-0 -o json
    """
    entries = [{"ID": row["ID"], **entry} for row in _rows(ctx, which) for entry in row["Log"]]
    cells = [[rfc3339(round(e["At"], 3)), str(e["ID"]), e["State"], e["Message"]] for e in entries]
    show(entries, output, layout([["Time", "Endpoint", "State", "Waits for"], *cells]))


@endpoint.command()
@click.argument("which", metavar="ID")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.pass_context
def health(ctx: click.Context, which: str, output: str) -> None:
    """The health of an endpoint: OK, Bootstrap, Pending, Failure or Disabled.

    ID is as in `cilia endpoint get`. Ends with 0 if all that match are OK, else with 1.

    \b
    Examples:
      cilia endpoint health 7
      cilia endpoint health pod-name:shop/web-0 -o json
    """
    rows = [_health(row) for row in _rows(ctx, which)]
    cells = [
        [str(r["ID"]), r["Health"], "yes" if r["Connected"] else "no", r["Message"]] for r in rows
    ]
    show(rows, output, layout([["Endpoint", "Health", "Connected", "Waits for"], *cells]))
    ctx.exit(0 if all(row["Health"] == "OK" for row in rows) else 1)


def _health(row: Row) -> Row:
    message = row["Error"] or (row["Log"][-1]["Message"] if row["Log"] else "")
    return {
        "ID": row["ID"],
        "Health": row["Health"],
        "Connected": row["State"] != "disconnected",
        "Message": message,
    }


def _rows(ctx: click.Context, which: str) -> list[Row]:
    """The endpoints that an ID means, at least one. Raises: ClickException."""
    matches = _matcher(which)
    rows = [row for row in pod_network_rows(ctx.obj["socket"], "endpoints") if matches(row)]
    if not rows:
        raise click.ClickException(
            f"no endpoint {which}: `cilia endpoint list` shows those there are"
        )
    return rows


def _matcher(which: str) -> Callable[[Row], bool]:
    kind, colon, value = which.partition(":")
    if not colon:
        kind, value = "cilium-local", which
    match kind:
        case "cilium-local":
            if not value.isdigit():
                raise click.BadParameter(
                    f"{which!r} is no number and no KIND:VALUE", param_hint="ID"
                )
            return lambda row: bool(row["ID"] == int(value))
        case "ipv4" | "ipv6":
            key = "IPv4" if kind == "ipv4" else "IPv6"
            return lambda row: bool(row[key] == value)
        case "pod-name" | "cep-name":
            return lambda row: f"{row['Namespace']}/{row['Pod']}" == value
        case "container-id":
            return lambda row: bool(row["ContainerID"] == value)
        case "cni-attachment-id":
            container, _, ifname = value.partition(":")
            return lambda row: bool(
                row["ContainerID"] == container and ifname in ("", row["Interface"])
            )
    raise click.BadParameter(f"{kind!r} is no kind of id", param_hint="ID")


def _cells(row: Row) -> list[str]:
    name = f"{row['Namespace']}/{row['Pod']}" if row["Pod"] else "-"
    state = row["State"] + (f" ({row['Error']})" if row["Error"] else "")
    return [
        str(row["ID"]),
        name,
        str(row["Identity"] or "<no label id>"),
        row["IPv4"] or "-",
        row["IPv6"] or "-",
        state,
    ]


def _wide_cells(row: Row) -> list[str]:
    phases = " ".join(f"{name}={ms:g}ms" for name, ms in row["PhasesMS"].items())
    return [row["Device"], row["ContainerID"][:12] or "-", phases]

# SPDX-License-Identifier: Apache-2.0
"""`cilia bpf ct|nat|nodes|metrics`: connections, translations, known nodes and counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cilia.datapath.cli.streamed import show_streamed
from cilia.program.output import show
from cilia.program.pins import pins_in_force
from statedb.shown.columns import layout

if TYPE_CHECKING:
    from bpf.maps.map import Map
    from bpf.maps.nat import NatKey, NatValue

Row = dict[str, Any]

DEFAULT_ROOT: Final = Path("/sys/fs/bpf")


def _root_of(ctx: click.Context, _: click.Parameter, given: Path | None) -> Path:
    """The one that was given, else where the instance has its pins."""
    if given is not None:
        return given
    pins = pins_in_force(Path(ctx.obj["socket"]).parent)
    return DEFAULT_ROOT if pins is None else pins.parent


BPF_ROOT = click.option(
    "--bpf-root",
    type=click.Path(path_type=Path),
    callback=_root_of,
    help=f"As given to the agent; by default where it has its maps, else {DEFAULT_ROOT}.",
)
OUTPUT = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table"
)


@click.group()
def ct() -> None:
    """Connection tracking."""


@ct.command(name="list")
@BPF_ROOT
@OUTPUT
@click.pass_context
def list_connections(ctx: click.Context, bpf_root: Path, output: str) -> None:
    """Every connection that the datapath knows, expired ones that were not collected yet too.

    \b
    Examples:
      cilia bpf ct list
      cilia bpf ct list -o json
    """
    from bpf.maps.ct import CT_MAPS

    rows = _rows(maps_dir(ctx, bpf_root), CT_MAPS, _connections)
    columns = ["protocol", "direction", "source", "destination", "translated", "expires_in_s"]
    show_streamed(rows, [*columns, "backend_id", "rev_nat", "flags", "packets", "bytes"], output)


@click.group()
def nat() -> None:
    """Source translation."""


@nat.command(name="list")
@BPF_ROOT
@OUTPUT
@click.pass_context
def list_translations(ctx: click.Context, bpf_root: Path, output: str) -> None:
    """Ways back of translated sources, and whose flows they are.

    Flows of clients have the way there in `cilia bpf ct list`.

    \b
    Examples:
      cilia bpf nat list
      cilia bpf nat list -o yaml
    """
    from bpf.maps.nat import NAT_MAPS

    rows = _rows(maps_dir(ctx, bpf_root), NAT_MAPS, _translations)
    columns = ["protocol", "direction", "source", "destination", "translated", "owner"]
    show_streamed(rows, [*columns, "expires_in_s", "rev_nat", "flags"], output)


@click.group()
def ipmasq() -> None:
    """Masquerading."""


@ipmasq.command(name="list")
@BPF_ROOT
@OUTPUT
@click.pass_context
def list_exclusions(ctx: click.Context, bpf_root: Path, output: str) -> None:
    """Prefixes that packets of this node's pods go to with their own source.

    \b
    Examples:
      cilia bpf ipmasq list
      cilia bpf ipmasq list -o json
    """
    from bpf.maps.masquerade import NAMES

    rows = list(_rows(maps_dir(ctx, bpf_root), NAMES, _exclusions))
    _show(rows, ["prefix"], output)


@click.group()
def nodes() -> None:
    """Nodes of the cluster."""


@nodes.command(name="list")
@BPF_ROOT
@OUTPUT
@click.pass_context
def list_nodes(ctx: click.Context, bpf_root: Path, output: str) -> None:
    """Addresses by which the datapath knows the nodes of the cluster; `self` is this one.

    \b
    Examples:
      cilia bpf nodes list
      cilia bpf nodes list -o json
    """
    from bpf.maps.cluster_nodes import NAMES

    rows = list(_rows(maps_dir(ctx, bpf_root), NAMES, _nodes))
    rows.sort(key=lambda row: row["address"])
    _show(rows, ["address", "flags"], output)


@click.group()
def metrics() -> None:
    """Counters of packets."""


@metrics.command(name="list")
@BPF_ROOT
@OUTPUT
@click.pass_context
def list_metrics(ctx: click.Context, bpf_root: Path, output: str) -> None:
    """What the datapath dropped and why, and what it forwarded, since its maps were made.

    \b
    Examples:
      cilia bpf metrics list
      cilia bpf metrics list -o json
    """
    rows = list(_rows(maps_dir(ctx, bpf_root), ["cilia_metrics"], _counters))
    rows.sort(key=lambda row: (row["reason"], row["direction"], row["file"], row["line"]))
    columns = ["reason", "flow_reason", "direction", "packets", "bytes", "line", "file"]
    _show(rows, columns, output)


def maps_dir(ctx: click.Context, bpf_root: Path) -> Path:
    return bpf_root / str(ctx.obj["instance"]) / "maps"


def _rows(
    directory: Path, names: Iterable[str], read: Callable[[Map], Iterator[Row]]
) -> Iterator[Row]:
    """What `read` finds in each of the pinned maps. Raises: ClickException."""
    for opened in opened_maps(directory, names):
        yield from read(opened)


def opened_maps(directory: Path, names: Iterable[str]) -> Iterator[Map]:
    """Those of the maps that are pinned, each open until the next one is asked for.

    Raises: ClickException when none is pinned, or when one cannot be opened.
    """
    from bpf.errors import BPFError, NotFound
    from bpf.maps.map import Map

    found = False
    for name in names:
        try:
            opened = Map.open_pinned(directory / name)
        except NotFound:
            continue
        except BPFError as error:
            raise click.ClickException(f"{error}: run this as root") from None
        found = True
        with opened:
            yield opened
    if not found:
        raise click.ClickException(
            f"{', '.join(names)}: not pinned below {directory}: no agent of this instance has run"
        )


def _connections(opened: Map) -> Iterator[Row]:
    from bpf.maps import ct as maps
    from bpf.maps.text import endpoint_text, protocol_name

    now = int(time.monotonic())
    for key, entry in maps.connections(opened):
        source = entry.translated_source(key)
        yield {
            "protocol": protocol_name(key.proto),
            "direction": maps.Direction(key.direction).name.lower(),
            "source": key.source_text,
            "destination": key.destination_text,
            "expires_in_s": entry.expires_s - now,
            "backend_id": entry.backend_id,
            "rev_nat": entry.rev_nat,
            "frontend": _frontend(entry.frontend(key)),
            "remote_identity": entry.remote_identity,
            "verdict": entry.verdict,
            "policy_generation": entry.generation,
            "flags": _flags(maps.CtFlag(entry.flags)),
            "packets": entry.packets,
            "bytes": entry.bytes,
            "reply_packets": entry.reply_packets,
            "reply_bytes": entry.reply_bytes,
            "translated": "" if source is None else f"source {endpoint_text(*source)}",
            "ifindex": entry.ifindex,
            "age_s": now - entry.created_s,
        }


def _translations(opened: Map) -> Iterator[Row]:
    from bpf.maps import nat as maps
    from bpf.maps.text import protocol_name

    now = int(time.monotonic())
    for key, value in maps.translations(opened):
        yield {
            "protocol": protocol_name(key.proto),
            "direction": maps.NatDirection(key.direction).name.lower(),
            "source": key.source_text,
            "destination": key.destination_text,
            "translated": _translated(key, value.address, value.port),
            "owner": _owner(key, value),
            "expires_in_s": value.expires_s - now,
            "rev_nat": value.rev_nat,
            "frontend": _frontend(value.asked),
            "flags": _flags(maps.NatFlag(value.flags)),
            "age_s": now - value.created_s,
        }


def _frontend(asked: tuple[bytes, int] | None) -> str:
    from bpf.maps.text import endpoint_text

    return "" if asked is None else endpoint_text(*asked)


def _translated(key: NatKey, address: bytes, port: int) -> str:
    from bpf.maps.nat import NatDirection
    from bpf.maps.text import endpoint_text

    side = "source" if key.direction == NatDirection.OUT else "destination"
    return f"{side} {endpoint_text(address, port)}"


def _owner(key: NatKey, value: NatValue) -> str:
    """Return whose flow an entry is of: a client's of a frontend, the node's own, or a pod's."""
    from bpf.maps.nat import NatDirection, NatFlag

    if value.flags & NatFlag.DSR:
        return "direct return"
    if value.rev_nat:
        return "client"
    # The node's own flows get another port of the same address.
    own = key.source if key.direction == NatDirection.OUT else key.destination
    return "node" if own == value.address else "masquerade"


def _exclusions(opened: Map) -> Iterator[Row]:
    from bpf.maps.masquerade import decode_key

    keys = sorted(decode_key(key) for key, _ in opened.items())
    for address, length in keys:
        yield {"prefix": f"{ip_address(address)}/{length}"}


def _nodes(opened: Map) -> Iterator[Row]:
    from bpf.maps.cluster_nodes import decode_value

    for key, value in opened.items():
        yield {"address": str(ip_address(key)), "flags": _flags(decode_value(value))}


def _counters(opened: Map) -> Iterator[Row]:
    from bpf import events, reasons
    from bpf.maps.percpu import PerCpuMap

    for metric in events.read_metrics(PerCpuMap(opened.detach_fd())):
        reason = reasons.reasons().get(metric.reason)
        yield {
            "reason": reasons.reason_label(metric.reason),
            "meaning": reason.text if reason else "",
            "flow_reason": reason.flow_number if reason else 0,
            "direction": events.Direction(metric.direction).name.lower(),
            "packets": metric.packets,
            "bytes": metric.bytes,
            "line": metric.line,
            "file": reasons.file_label(metric.file),
        }


def _flags(flags: Any) -> str:
    return ",".join(flag.name.lower().replace("_", "-") for flag in flags)


def _show(rows: list[Row], columns: list[str], output: str) -> None:
    """A table has the columns that fit a terminal, the other forms have all."""
    heads = [column.replace("_", " ").capitalize() for column in columns]
    cells = [[str(row[column]) for column in columns] for row in rows]
    show(rows, output, layout([heads, *cells]))

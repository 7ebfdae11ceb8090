# SPDX-License-Identifier: Apache-2.0
"""`cilia bpf ipcache`: which identity the datapath knows behind each prefix."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cilia.datapath.cli.bpf_flows import BPF_ROOT, OUTPUT, maps_dir, opened_maps
from cilia.program.output import show
from statedb.shown.columns import layout

if TYPE_CHECKING:
    from bpf.maps.ipcache import IPCacheKey, IPCacheValue

_CLUSTER: Final = click.option(
    "--cluster-id", type=click.IntRange(0, 65_535), default=0, help="0 is this cluster."
)


@click.group()
def ipcache() -> None:
    """Identities behind prefixes."""


@ipcache.command(name="list")
@BPF_ROOT
@OUTPUT
@click.pass_context
def list_(ctx: click.Context, bpf_root: Path, output: str) -> None:
    """Every prefix that the datapath knows, with its identity.

    \b
    Examples:
      cilia bpf ipcache list
      cilia bpf ipcache list -o json
    """
    entries = sorted(_entries(maps_dir(ctx, bpf_root)).items(), key=_order)
    shown = {str(key): [str(value)] for key, value in entries}
    if not entries and output == "table":
        click.echo("No entries found.", err=True)
        return
    cells = [[prefix, *values] for prefix, values in shown.items()]
    show(shown, output, layout([["IP PREFIX/ADDRESS", "IDENTITY"], *cells]))


@ipcache.command()
@click.argument("address")
@_CLUSTER
@BPF_ROOT
@click.pass_context
def get(ctx: click.Context, address: str, cluster_id: int, bpf_root: Path) -> None:
    """The identity of ADDRESS, as a program finds it: by the longest prefix that covers it.

    \b
    Example:
      cilia bpf ipcache get 10.244.1.17
    """
    from bpf.maps.ipcache import NAME, IPCacheKey, decode_value, encode_key

    try:
        packed = ip_address(address).packed
    except ValueError:
        raise click.BadParameter(f"{address!r} is no address", param_hint="ADDRESS") from None
    key = encode_key(IPCacheKey(packed, 8 * len(packed), cluster_id))
    (raw,) = (opened.lookup(key) for opened in opened_maps(maps_dir(ctx, bpf_root), [NAME]))
    if raw is None:
        raise click.ClickException(
            f"no prefix covers {address}: `cilia bpf ipcache list` shows those there are"
        )
    click.echo(f"{address} maps to identity {decode_value(raw)}")


@ipcache.command()
@click.argument("prefix")
@_CLUSTER
@BPF_ROOT
@click.pass_context
def match(ctx: click.Context, prefix: str, cluster_id: int, bpf_root: Path) -> None:
    """The identity of the entry whose prefix is exactly PREFIX.

    \b
    Example:
      cilia bpf ipcache match 10.244.1.0/24
    """
    from bpf.maps.ipcache import IPCacheKey

    try:
        network = ip_network(prefix)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="PREFIX") from None
    key = IPCacheKey(network.network_address.packed, network.prefixlen, cluster_id)
    value = _entries(maps_dir(ctx, bpf_root)).get(key)
    if value is None:
        raise click.ClickException(
            f"no entry is {key}: `cilia bpf ipcache list` shows those there are"
        )
    click.echo(f"{key} maps to identity {value}")


def _entries(directory: Path) -> dict[IPCacheKey, IPCacheValue]:
    from bpf.maps.ipcache import NAME, decode_key, decode_value

    return {
        decode_key(key): decode_value(value)
        for opened in opened_maps(directory, [NAME])
        for key, value in opened.items()
    }


def _order(entry: tuple[IPCacheKey, IPCacheValue]) -> tuple[int, int, bytes, int]:
    key, _ = entry
    return key.cluster_id, len(key.address), key.address, key.length

# SPDX-License-Identifier: Apache-2.0
"""`cilia bpf`: the pinned maps as they are in the kernel; needs no agent."""

from __future__ import annotations

from pathlib import Path

import click

from cilia.datapath.cli.bpf_flows import BPF_ROOT, ct, ipmasq, metrics, nat, nodes
from cilia.datapath.cli.bpf_ipcache import ipcache
from cilia.program.output import pinned_lb_maps


@click.group()
def bpf() -> None:
    """Read the pinned BPF maps, also while no agent runs."""


for group in (ct, nat, ipmasq, nodes, metrics, ipcache):
    bpf.add_command(group)


@bpf.group()
def lb() -> None:
    """Service load balancing."""


@lb.command(name="list")
@BPF_ROOT
@click.option("--frontends", "prefix", flag_value="SVC:", help="Only service entries.")
@click.option("--backends", "prefix", flag_value="BE:", help="Only backends.")
@click.option("--revnat", "prefix", flag_value="REV:", help="Only reverse translation.")
@click.pass_context
def list_(ctx: click.Context, bpf_root: Path, prefix: str | None) -> None:
    """Every entry of the load-balancer maps, a line each, sorted.

    \b
    Examples:
      cilia bpf lb list
      cilia bpf lb list --backends
    """
    from bpf.maps.lb_dump import dump

    with pinned_lb_maps(bpf_root / ctx.obj["instance"] / "maps") as maps:
        for line in dump(maps).splitlines():
            if prefix is None or line.startswith(prefix):
                click.echo(line)

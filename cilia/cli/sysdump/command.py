# SPDX-License-Identifier: Apache-2.0
"""`cilia sysdump`: gathers one archive, saying what it does."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import click

import cilia
from cilia.cli.sysdump.archive import Writer
from cilia.cli.sysdump.parts import EXPECTED, Node, Part, parts
from cilia.datapath.cli.bpf_flows import BPF_ROOT

MIB = 1 << 20


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Default: cilia-sysdump-NODE-TIME.tar.gz here.",
)
@click.option(
    "--max-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    metavar="MIB",
    help="Of all that is gathered, before compression.",
)
@BPF_ROOT
@click.pass_context
def sysdump(ctx: click.Context, output: Path | None, max_size: int, bpf_root: Path) -> None:
    """Gather what this node knows in one archive: tables, maps, links, logs, options, versions.

    Works also when no agent answers; what is missing then is named, here and in the archive. What
    looks like a credential is struck out of logs, options and tables. `cilia db show TABLE --from
    FILE` shows the tables of an archive.

    \b
    Examples:
      cilia sysdump
      cilia sysdump -o /tmp/node-1.tar.gz --max-size 64
      kubectl -n kube-system exec cilia-x7k2p -- cilia sysdump -o - > node-1.tar.gz
    """
    node = Node(ctx.obj["socket"], ctx.obj["instance"], bpf_root)
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    path = output or Path(f"cilia-sysdump-{socket.gethostname()}-{stamp}.tar.gz")
    facts = {"node": socket.gethostname(), "time": now, "cilia": cilia.__version__}
    try:
        with _opened(path) as file:
            writer = Writer(file, max_size * MIB, facts)
            missing = [part.name for part in parts(node) if _add(writer, part)]
            writer.close()
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    if str(path) != "-":
        size = path.stat().st_size
        click.echo(f"{path}: {size / MIB:.1f} MiB, {len(missing)} parts are not complete")


def _opened(path: Path) -> Any:
    """Readable by its owner alone; a file that is there is not overwritten. `-`: to the output."""
    if str(path) == "-":
        return contextlib.nullcontext(sys.stdout.buffer)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _add(writer: Writer, part: Part) -> str:
    """Adds it and says so; what was wrong with it."""
    began = time.monotonic()
    wrong = writer.add(part.name, part.content(), EXPECTED)
    took_s = time.monotonic() - began
    said = click.style(f"  {wrong}", fg="red") if wrong else ""
    click.echo(f"{part.name:<40} {took_s:5.1f} s{said}", err=True)
    return wrong

# SPDX-License-Identifier: Apache-2.0
"""What commands share that show something: the three forms, and the maps that they read it from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cilia.program.unread import tell_unread

if TYPE_CHECKING:
    from bpf.maps.lb import LBMaps


#: What shows the map that a table goes to.
_IN_THE_KERNEL: Final = {"ipcache": "bpf ipcache list"}


def show(value: Any, output: str, text: str) -> None:
    """`value` as `json` or `yaml`, or else `text`, which ends in a newline."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    elif output == "yaml":
        import yaml  # 20 ms that only this form pays

        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
    else:
        click.echo(text, nl=False)


def pod_network_rows(
    socket: str, table: str, kind: str = "all", key: str = "", index: str | None = None
) -> list[dict[str, Any]]:
    """Return rows of a table that an agent has if it is the pod network, and say if more may be in
    force; `kind`: of the query.

    Raises: ClickException.
    """
    from statedb.errors import StateDBError
    from statedb.web.remote import RemoteDB

    db = RemoteDB(socket)
    try:
        tables = {known["name"]: known for known in db.summary()["tables"]}
        if table not in tables:
            raise click.ClickException(
                "cilia is not the pod network of this node: its agent runs without --pod-network"
            )
        if command := _IN_THE_KERNEL.get(table):
            tell_unread(tables[table]["pending_initializers"], command)
        with db.table(table).rows(db.read_txn(), kind, key, index) as rows:
            return [row["object"] for row in rows]
    except StateDBError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def pinned_lb_maps(directory: Path) -> Iterator[LBMaps]:
    """The load-balancer maps below a directory. Raises: ClickException where none can be opened."""
    from bpf.errors import BPFError, NotFound
    from bpf.maps.lb import LBMaps

    try:
        maps = LBMaps.open_pinned(directory)
    except NotFound:
        raise click.ClickException(
            f"no maps are pinned below {directory}: no agent of this instance has run"
        ) from None
    except BPFError as error:
        raise click.ClickException(f"{error}: run this as root") from None
    try:
        yield maps
    finally:
        maps.close()

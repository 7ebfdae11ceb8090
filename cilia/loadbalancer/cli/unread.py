# SPDX-License-Identifier: Apache-2.0
"""Commands that list rows say so while the kernel may have more than rows tell."""

from __future__ import annotations

import click

from statedb.web.remote import RemoteDB, RemoteTxn

__all__ = ["tell_unread"]


def tell_unread(db: RemoteDB, txn: RemoteTxn) -> None:
    """Say on standard error which inputs of frontends are unread, and what shows the rest."""
    names = db.table("frontends").pending_initializers(txn)
    if names:
        click.echo(
            f"Not all is read yet ({', '.join(names)}): what was in force before stays, and may not"
            " be listed here. The kernel's own entries: cilia bpf lb list; what cannot be read:"
            " cilia db show problems.",
            err=True,
        )

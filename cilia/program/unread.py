# SPDX-License-Identifier: Apache-2.0
"""Commands that list rows say so while the kernel may have more than rows tell."""

from __future__ import annotations

from collections.abc import Sequence

import click

__all__ = ["tell_unread"]


def tell_unread(names: Sequence[str], command: str) -> None:
    """Say on standard error which inputs of a table are unread; `command` shows what the kernel
    has.
    """
    if names:
        click.echo(
            f"Not all is read yet ({', '.join(names)}): what was in force before stays, and may not"
            f" be listed here. The kernel's own entries: cilia {command}; what cannot be read:"
            " cilia db show problems.",
            err=True,
        )

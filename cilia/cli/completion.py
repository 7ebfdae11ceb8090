# SPDX-License-Identifier: Apache-2.0
"""`cilia completion`: the script that makes a shell complete `cilia`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      source <(cilia completion bash)
      cilia completion fish > ~/.config/fish/completions/cilia.fish
    """
    known = get_completion_class(shell)
    assert known is not None
    click.echo(known(ctx.find_root().command, {}, "cilia", "_CILIA_COMPLETE").source())

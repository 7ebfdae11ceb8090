# SPDX-License-Identifier: Apache-2.0
"""`cilia replacement`: whether Services are served here or left to kube-proxy, and the way between.

Nothing is interrupted by a turn: connections that are known go on where they are.
"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from cilia.api.client import ApiError, request

#: By the state of the switch: who has connections that begin now.
REPLACEMENT = {
    "serve": "served here",
    "hand_back": "handed back, those that are known go on: see cilia replacement",
    "take_over": "served here; TCP connections that another proxy has are left to it",
}

LOOK_S = 0.5  # nobody pushes what is left


@click.group()
def replacement() -> None:
    """Hand Services back to kube-proxy, or take them over, while traffic flows.

    \b
    Examples:
      cilia replacement status
      cilia replacement off --wait
      cilia replacement on
    """


@replacement.command()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
@click.pass_context
def status(ctx: click.Context, output: str) -> None:
    """Who has new connections, and how many are translated here."""
    answer = _ask(ctx)
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"New connections:  {REPLACEMENT[answer['state']]}")
    click.echo(f"Translated here:  {_left(answer)}")


@replacement.command()
@click.pass_context
def on(ctx: click.Context) -> None:
    """Take new connections; TCP connections that another proxy has are left to it."""
    _ask(ctx, on=True)
    click.echo(f"New connections:  {REPLACEMENT[_ask(ctx)['state']]}")


@replacement.command()
@click.option("--wait", is_flag=True, help="Until no packets are translated here.")
@click.option("--wait-duration", type=float, default=300, show_default=True, metavar="SECONDS")
@click.pass_context
def off(ctx: click.Context, wait: bool, wait_duration: float) -> None:
    """Leave new connections to kube-proxy, which must have its rules in place by now.

    It stays off when the agent restarts. With --wait ends with 1 if there are connections of
    packets after that time: `cilia cleanup` would break them. Those of sockets go on without us.
    """
    _ask(ctx, on=False)
    click.echo(f"New connections:  {REPLACEMENT['hand_back']}")
    if wait:
        ctx.exit(0 if _wait(ctx, wait_duration) else 1)


def _wait(ctx: click.Context, duration_s: float) -> bool:
    """Tell whenever a number changes; true when no packets are translated.

    Sockets are not waited for: some have their connection for months, and need nothing for it.
    """
    until = time.monotonic() + duration_s
    told = ""
    while True:
        answer = _ask(ctx)
        if _left(answer) != told:
            told = _left(answer)
            click.echo(f"Translated here:  {told}")
        if not answer["packets"]:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(LOOK_S)


def _left(answer: dict[str, Any]) -> str:
    sockets = "unknown" if answer["sockets"] is None else answer["sockets"]
    return f"{sockets} connections of sockets, {answer['packets']} of packets"


def _ask(ctx: click.Context, **body: bool) -> dict[str, Any]:
    """Raises: click.ClickException when there is no agent."""
    try:
        answer: dict[str, Any] = request(
            ctx.obj["socket"],
            "/replacement",
            method="PUT" if body else "GET",
            body=body or None,
            timeout_s=60.0,
        )
    except ApiError as error:
        raise click.ClickException(str(error)) from None
    return answer

# SPDX-License-Identifier: Apache-2.0
"""`cilia shell`: the commands of golden scripts, typed at a running agent.

The agent runs the lines, in a directory of its own for each shell. So files that a line names are
sent along, and those it wrote are brought back: `db/show T -o f` writes f here, `db/insert T f`
reads it.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cilia.api.client import ApiError, request
from cilia.cli.completer import Completer
from cilia.script import txtar
from cilia.script.errors import ParseError
from cilia.script.sessions import LINE_LIMIT_S, MAX_FILE_BYTES
from cilia.script.tokens import parse_line, quote, raw_text
from statedb.shown.text import visible

PROMPT = "cilia> "
HISTORY_LINES = 1000
FAILED = 1


class AgentShell:
    """A session with an agent; `run` sends a line and prints what comes back."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._session = secrets.token_hex(16)

    def commands(self) -> list[dict[str, Any]]:
        """The agent's commands, for completion.

        Raises: ApiError.
        """
        commands: list[dict[str, Any]] = request(self._socket, "/script/commands")["commands"]
        return commands

    def run(self, line: str) -> bool:
        """Run a line; whether it did what it was to do.

        Raises: ApiError if the agent cannot be asked.
        """
        names = words_of(line)
        answer = self._ask({"line": line, "files": dict(local_files(names))})
        click.echo(visible(answer["stdout"], keep="\n\t"), nl=False)
        click.echo(visible(answer["stderr"], keep="\n\t"), nl=False, err=True)
        click.echo(visible(answer["log"], keep="\n\t"), nl=False, err=True)
        for name, text in answer["files"].items():
            if any(word.endswith(name) for word in names):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(txtar.encode(text))
        if answer["error"]:
            click.echo(click.style(visible(answer["error"], keep="\n\t"), fg="red"), err=True)
        return not answer["error"]

    def close(self) -> None:
        """Tell the agent that this session is over."""
        self._ask({"line": "", "close": True})

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = request(
            self._socket,
            "/script/run",
            method="POST",
            body={"session": self._session, **body},
            timeout_s=LINE_LIMIT_S + 5,
        )
        return answer


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", metavar="[COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def shell(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Type script commands at a running agent; with a command, run just that.

    Lines may also come from a pipe: the first that fails ends it, with exit status 1.
    `help` lists the commands, `help NAME` explains them; Tab completes.

    \b
    Examples:
      cilia shell
      cilia shell db/show frontends -o frontends.txt
      echo 'db/empty backends' | cilia shell
    """
    agent = AgentShell(ctx.obj["socket"])
    try:
        if words:
            line = words[0] if len(words) == 1 else quote(list(words))
            ctx.exit(0 if run_all(agent, [line]) else FAILED)
        if sys.stdin.isatty():
            interact(agent)
        else:
            ctx.exit(0 if run_all(agent, sys.stdin) else FAILED)
    except ApiError as error:
        raise click.ClickException(str(error)) from None


def run_all(agent: AgentShell, lines: Iterable[str]) -> bool:
    """Run lines until one fails; whether none did."""
    succeeded = all(agent.run(line.rstrip("\n")) for line in lines)
    agent.close()
    return succeeded


def interact(agent: AgentShell) -> None:
    """Read lines from the terminal until its end."""
    completer = Completer(agent.commands())
    with terminal(completer):
        while True:
            try:
                line = input(PROMPT).strip()
            except KeyboardInterrupt:
                click.echo()
                continue
            except EOFError:
                click.echo()
                break
            if line in ("exit", "quit"):
                break
            try:
                agent.run(line)
            except KeyboardInterrupt:
                click.echo("interrupted; the agent finishes the command by itself", err=True)
            except ApiError as error:
                click.echo(click.style(str(error), fg="red"), err=True)
    agent.close()


@contextmanager
def terminal(completer: Completer) -> Iterator[None]:
    """Completion, and the history of earlier shells, which is kept when it ends."""
    import readline  # only here: importing it changes how the terminal reads

    file = history_file()
    if file.exists():
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" \t\n")
    readline.set_completer(completer.complete)
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        file.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(file)


def history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "cilia", "shell_history")


def words_of(line: str) -> list[str]:
    """The words of a line before expansion; none if the agent will refuse it anyway."""
    try:
        parsed = parse_line(line)
    except ParseError:
        return []
    return [raw_text(word) for word in parsed.words] if parsed else []


def local_files(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The files below the current directory that words name, with their contents."""
    for word in words:
        path = Path(word)
        inside = not path.is_absolute() and ".." not in path.parts
        if inside and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            yield word, txtar.decode(path.read_bytes())

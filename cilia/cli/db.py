# SPDX-License-Identifier: Apache-2.0
"""`cilia db`: the tables of a running agent, read over its socket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from statedb.errors import RemoteError, StateDBError, Unreachable
from statedb.shown.columns import layout, positions
from statedb.shown.queries import At
from statedb.shown.rendering import check_format, summary_text, value_texts
from statedb.web.remote import Form, RemoteChange, RemoteDB, RemoteTxn, Restart, Synced

Events = Iterator[Restart | RemoteChange[Any] | Synced]
Decorator = Callable[[Callable[..., Any]], Any]

COMPLETION_TIMEOUT_S = 1.0  # whoever pressed TAB does not wait longer for an agent that hangs


def _remote(ctx: click.Context) -> RemoteDB:
    return RemoteDB(ctx.find_root().obj["socket"])


@contextlib.contextmanager
def _told(ctx: click.Context) -> Iterator[RemoteDB]:
    """The agent's database; whatever goes wrong with it is one sentence."""
    try:
        yield _remote(ctx)
    except Unreachable as error:
        hint = "(--instance and --socket name another)"
        raise click.ClickException(f"{error} {hint}") from None
    except StateDBError as error:
        raise click.ClickException(str(error)) from None


def complete_table(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The agent's table names; none if it does not answer, since a shell cannot show errors.

    The group's callback does not run for a completion: the options are read as they were typed.
    """
    typed = ctx.find_root().params
    socket = typed.get("socket") or f"/run/{typed.get('instance') or 'cilia'}/cilia.sock"
    try:
        described = RemoteDB(socket, timeout_s=COMPLETION_TIMEOUT_S).summary()
    except RemoteError:
        return []
    names = [table["name"] for table in described["tables"]]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _options(*decorators: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_table = click.argument("table", shell_complete=complete_table)
_shown = _options(
    click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table"),
    click.option("--columns", metavar="A,B", default="", help="Only these, in this order."),
)
_at_revision = click.option(
    "--at-revision",
    metavar="[INSTANCE:]N",
    default="",
    help="The table as it was at this revision of it, within the agent's history.",
)
_queried = _options(
    _table,
    click.argument("key"),
    click.option("-i", "--index", metavar="NAME", help="Index to query; default: the primary."),
    _shown,
    _at_revision,
    click.pass_context,
)


@click.group(invoke_without_command=True)
@click.pass_context
def db(ctx: click.Context) -> None:
    """Show the agent's tables.

    Without a command: all tables, with the number of their objects and their indexes.

    \b
    Examples:
      cilia db
      cilia db show frontends --columns Address,Status
      cilia db show backends -o yaml
      cilia db prefix frontends 10.0.0.1
      cilia db show frontends --watch
    """
    if ctx.invoked_subcommand is None:
        with _told(ctx) as remote:
            click.echo(summary_text(remote.summary()), nl=False)


@db.command()
@_table
@_shown
@_at_revision
@click.option("-w", "--watch", is_flag=True, help="Go on with each change as it happens.")
@click.option(
    "--from",
    "archive",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The table as an archive of `cilia sysdump` has it.",
)
@click.pass_context
def show(
    ctx: click.Context,
    table: str,
    output: str,
    columns: str,
    at_revision: str,
    watch: bool,
    archive: Path | None,
) -> None:
    """Print a table, in the order of its primary key.

    With --watch, changes follow as they happen; an agent that restarts is waited for.

    \b
    Examples:
      cilia db show frontends
      cilia db show frontends -o json | jq -c .
      cilia db show frontends --watch --columns Address,Status
      cilia db show frontends --at-revision 1200
      cilia db show frontends --from cilia-sysdump-node-1.tar.gz
    """
    if archive and (watch or at_revision):
        raise click.UsageError(
            "--from is one state: it goes with neither --watch nor --at-revision"
        )
    if archive:
        from cilia.cli.sysdump.tables import show_archived  # with all that makes archives

        show_archived(archive, table, output, _names(columns))
        return
    if watch and at_revision:
        raise click.UsageError("--watch begins now: it does not go with --at-revision")
    if watch:
        _watch(ctx, table, output, _names(columns))
    else:
        _print(ctx, table, "all", "", None, output, columns, at_revision)


@db.command()
@_queried
def get(ctx: click.Context, table: str, key: str, index: str | None, **shown: str) -> None:
    """Print the first object with this key; end with 1 if there is none.

    \b
    Examples:
      cilia db get services default/web -o yaml
    """
    if not _print(ctx, table, "get", key, index, **shown):
        raise click.ClickException(f"table {table} has no object with the key {key}")


@db.command(name="list")
@_queried
def list_(ctx: click.Context, table: str, key: str, index: str | None, **shown: str) -> None:
    """Print all objects with this key.

    \b
    Examples:
      cilia db list frontends default/web --index service
    """
    _print(ctx, table, "list", key, index, **shown)


@db.command()
@_queried
def prefix(ctx: click.Context, table: str, key: str, index: str | None, **shown: str) -> None:
    """Print all objects whose key begins with this one.

    \b
    Examples:
      cilia db prefix services kube-system/
    """
    _print(ctx, table, "prefix", key, index, **shown)


@db.command()
@_queried
def lowerbound(ctx: click.Context, table: str, key: str, index: str | None, **shown: str) -> None:
    """Print all objects whose key is this one or comes after it.

    \b
    Examples:
      cilia db lowerbound services kube-system/
    """
    _print(ctx, table, "lower_bound", key, index, **shown)


@db.command()
@click.argument("table", required=False, default="", shell_complete=complete_table)
@_at_revision
@click.pass_context
def dump(ctx: click.Context, table: str, at_revision: str) -> None:
    """Print all tables, or one, as one JSON document.

    \b
    Examples:
      cilia db dump > tables.json
      cilia db dump frontends | jq .revision
    """
    with _told(ctx) as remote:
        for piece in remote.dump(_txn(remote, at_revision), table):
            click.echo(piece, nl=False)


def _names(columns: str) -> list[str]:
    return [name for name in columns.split(",") if name]


def _txn(remote: RemoteDB, at_revision: str) -> RemoteTxn:
    at = At.parse(at_revision)
    return remote.read_txn(at.revision or None, at.instance or None)


def _print(
    ctx: click.Context,
    table: str,
    kind: str,
    key: str,
    index: str | None,
    output: str,
    columns: str,
    at_revision: str,
) -> int:
    """Prints what a query finds as it arrives, but for a text table, which is laid out at the end.

    Returns how many rows there were.
    """
    names = _names(columns)
    count = 0
    with _told(ctx) as remote:
        check_format(output, names)
        txn = _txn(remote, at_revision)
        form: Form = "cells" if output == "table" else "object"
        with remote.table(table).rows(txn, kind, key, index, form) as rows:
            if output == "table":
                printer = _TextTable(rows.head["columns"], names)
                found = [printer.chosen(row["cells"]) for row in rows]
                printer.echo(found)
                return len(found)
            for text in value_texts((row["object"] for row in rows), output):
                click.echo(text, nl=False)
                count += 1
    return count


class _TextTable:
    """Rows of cells, laid out with widths that only grow; the heading is printed with the first."""

    def __init__(self, known: list[str], names: list[str], first: str = "") -> None:
        self._chosen = positions(known, names or known)
        self._heading = [*([first] if first else []), *(names or known)]
        self._widths: list[int] = []

    def chosen(self, cells: list[str]) -> list[str]:
        """The cells of the columns that are printed."""
        return [cells[at] for at in self._chosen]

    def echo(self, rows: list[list[str]]) -> None:
        heading, self._heading = self._heading, []
        click.echo(layout([heading, *rows] if heading else rows, self._widths), nl=False)


def _watch(ctx: click.Context, table: str, output: str, names: list[str]) -> None:
    """Prints the table and then its changes, until it is interrupted."""
    with _told(ctx) as remote, contextlib.suppress(KeyboardInterrupt):
        check_format(output, names)
        form: Form = "cells" if output == "table" else "object"
        events: Events = remote.table(table).follow(form, lost=_lost)
        if output == "table":
            _watch_cells(events, names)
        else:
            _watch_objects(events, output)


def _watch_cells(events: Events, names: list[str]) -> None:
    """Prints batch by batch; what is there in the beginning has an empty first column."""
    printer: _TextTable | None = None
    rows: list[list[str]] = []
    synced = False
    for event in events:
        match event:
            case Restart():
                _restarted(event)
                synced = False
                rows = []
                printer = printer or _TextTable(list(event.columns), names, "Change")
            case RemoteChange():
                assert printer is not None, "a stream begins with a restart"
                word = "delete" if event.deleted else "write" if synced else ""
                rows.append([word, *printer.chosen(event.obj)])
            case Synced():
                assert printer is not None, "a stream begins with a restart"
                if rows or not synced:
                    printer.echo(rows)
                rows, synced = [], True


def _watch_objects(events: Events, output: str) -> None:
    """Prints each change as an object or document with `change`, `revision` and `object`."""

    def changes() -> Iterator[dict[str, Any]]:
        for event in events:
            if isinstance(event, RemoteChange):
                word = "delete" if event.deleted else "write"
                yield {"change": word, "revision": event.revision, "object": event.obj}
            elif isinstance(event, Restart):
                _restarted(event)

    for text in value_texts(changes(), output):
        click.echo(text, nl=False)


def _restarted(event: Restart) -> None:
    if event.reason:
        click.echo(f"The whole table again: {event.reason}", err=True)


def _lost(error: RemoteError) -> None:
    click.echo(f"{error}; trying again", err=True)

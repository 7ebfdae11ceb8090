# SPDX-License-Identifier: Apache-2.0
"""Script commands that look at an agent from outside: `health`, `metrics`, `http/get`."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.metrics_core import Metric

from cilia.agent.script_target import Flags, Target
from cilia.script import Command, CommandFailed, Flag, Output, State
from cilia.script.goregexp import Regexp, compile_re2
from statedb import Column
from statedb.columns import table_text
from tables.health import Health, Level

__all__ = ["observe_commands"]

_OUT = Flag("out", "o", "str", "", "write to this file")
_HTTP = ("http://", "https://")
_HEALTH_COLUMNS = ("Module", "Component", "Level", "Message", "Error")


def observe_commands(app: Target) -> tuple[Command, ...]:
    """None of these changes anything."""

    def health(state: State, flags: Flags, args: list[str]) -> Output:
        if len(args) > 1:
            raise CommandFailed("expected at most one MODULE")
        table = app.agent.tables.health
        rows = _select(table.all(app.agent.tables.db.read_txn()), flags, "".join(args))
        return Output(table_text(table.columns, rows, _HEALTH_COLUMNS))

    def health_ok(state: State, flags: Flags, args: list[str]) -> Output:
        rows = app.agent.tables.health.all(app.agent.tables.db.read_txn())
        bad = [row for row in rows if row.level is Level.DEGRADED]
        text = table_text(app.agent.tables.health.columns, bad, _HEALTH_COLUMNS)
        return Output(error=CommandFailed(f"degraded:\n{text}")) if bad else Output()

    def metrics(state: State, flags: Flags, args: list[str]) -> Output:
        if len(args) > 1:
            raise CommandFailed("expected at most one REGEXP")
        wanted = compile_re2("".join(args))
        rows = sorted(_samples(app.agent.registry.collect(), wanted))
        text = table_text(_METRIC_COLUMNS, rows)
        if not flags["out"]:
            return Output(text)
        state.write_text(flags["out"], text)
        return Output()

    return (
        Command(
            "health",
            "print the health of the parts",
            health,
            "[MODULE]",
            flags=(
                Flag("levels", "s", "strings", (), "only these levels: ok, degraded, stopped"),
                Flag("match", "m", "str", "", "only rows in which this text stands"),
            ),
        ),
        Command("health/ok", "fail if a part is degraded", health_ok),
        Command(
            "metrics", "print the metrics", metrics, "[REGEXP]", flags=(_OUT,), regexp_args=True
        ),
        Command("http/get", "write status, headers and body to a file", _http_get, "URL FILE"),
    )


def _select(rows: Iterable[Health], flags: Flags, module: str) -> Iterator[Health]:
    levels = {level.lower() for level in flags["levels"]}
    unknown = levels - {level.value.lower() for level in Level}
    if unknown:
        raise CommandFailed(f"no such level: {', '.join(sorted(unknown))}")
    for row in rows:
        path = f"{row.module}.{row.component}"
        if module and not f"{path}.".startswith(f"{module}."):
            continue
        if levels and row.level.value.lower() not in levels:
            continue
        if flags["match"] in f"{path} {row.message} {row.error}":
            yield row


Sample = tuple[str, str, str]

_METRIC_COLUMNS = (
    Column("Metric", lambda sample: sample[0]),
    Column("Labels", lambda sample: sample[1]),
    Column("Value", lambda sample: sample[2]),
)


def _samples(families: Iterable[Metric], wanted: Regexp) -> Iterator[Sample]:
    for family in families:
        for sample in family.samples:
            labels = " ".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if wanted.matches(sample.name) or wanted.matches(labels):
                yield sample.name, labels, f"{sample.value:f}"


def _http_get(state: State, flags: Flags, args: list[str]) -> None:
    if len(args) != 2:
        raise CommandFailed("expected URL FILE")
    url, file = args
    if not url.startswith(_HTTP):
        raise CommandFailed(f"{url!r} is no http address")
    # A proxy of the environment would see addresses that are meant for this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AnyStatus)
    try:
        with opener.open(url, timeout=max(state.remaining_s(), 0.1)) as answer:
            state.write_text(file, _answer_text(answer))
    except (OSError, urllib.error.URLError) as error:
        raise CommandFailed(f"{url}: {error}") from error


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """An answer is an answer, whatever its status."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response


def _answer_text(answer: Any) -> str:
    headers = {name.title(): value for name, value in answer.headers.items()}
    headers.pop("Connection", None)  # of the way, not of the answer
    if "Date" in headers:
        headers["Date"] = "<omitted>"
    lines = [f"{answer.status} {answer.reason}"]
    lines += [f"{name}={value}" for name, value in sorted(headers.items())]
    body = answer.read().decode(errors="replace")
    return "\n".join(lines) + f"\n---\n{body}"

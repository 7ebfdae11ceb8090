# SPDX-License-Identifier: Apache-2.0
"""Script commands that look at an agent from outside: `health`, `metrics`, `http/get`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import yaml

from cilia.agent.metrics_samples import AGES, MetricsSampler, series_of
from cilia.agent.script.html import metrics_page
from cilia.agent.script.target import Flags, Target
from cilia.script.commands import Command, Flag, Output
from cilia.script.errors import CommandFailed
from cilia.script.goregexp import Regexp, compile_re2
from cilia.script.state import State
from statedb import Column
from statedb.shown.columns import table_text
from tables.health import Health, Level

__all__ = ["observe_commands"]

_OUT = Flag("out", "o", "str", "", "write to this file")
_HTTP = ("http://", "https://")
_HEALTH_COLUMNS = ("Module", "Component", "Level", "Message", "Error")
_HISTORY_COLUMNS = ("UpdatedAt", *_HEALTH_COLUMNS)
_HEALTH_FLAGS = (
    Flag("levels", "s", "strings", (), "only these levels: ok, degraded, stopped"),
    Flag("match", "m", "str", "", "only rows in which this text stands"),
)
_SAMPLED = Flag("sampled", "s", help="how they were in the last two hours")
_FORMAT = Flag("format", "f", "str", "table", "table, json or yaml")


def observe_commands(app: Target) -> tuple[Command, ...]:
    """None of these changes anything."""

    def health(state: State, flags: Flags, args: list[str]) -> Output:
        if len(args) > 1:
            raise CommandFailed("expected at most one MODULE")
        table = app.agent.ctx.health
        rows = _select(table.all(app.agent.ctx.db.read_txn()), flags, "".join(args))
        return Output(table_text(table.columns, rows, _HEALTH_COLUMNS))

    def health_ok(state: State, flags: Flags, args: list[str]) -> Output:
        rows = app.agent.ctx.health.all(app.agent.ctx.db.read_txn())
        bad = [row for row in rows if row.level is Level.DEGRADED]
        text = table_text(app.agent.ctx.health.columns, bad, _HEALTH_COLUMNS)
        return Output(error=CommandFailed(f"degraded:\n{text}")) if bad else Output()

    def history(state: State, flags: Flags, args: list[str]) -> Output:
        if len(args) > 1:
            raise CommandFailed("expected at most one MODULE")
        rows = _select(app.agent.observation.health_history.reports(), flags, "".join(args))
        return Output(table_text(app.agent.ctx.health.columns, rows, _HISTORY_COLUMNS))

    def metrics(state: State, flags: Flags, args: list[str]) -> Output:
        wanted = _pattern(args)
        sampled = flags["sampled"]
        rows = _sampled(app.agent.observation.sampler, wanted) if sampled else _current(app, wanted)
        columns = _SAMPLED_COLUMNS if sampled else _METRIC_COLUMNS
        if flags["format"] not in _FORMATS:
            raise CommandFailed(f"no such format: {flags['format']}")
        text = _FORMATS[flags["format"]](columns, rows)
        if not flags["out"]:
            return Output(text)
        state.write_text(flags["out"], text)
        return Output()

    def plot(state: State, flags: Flags, args: list[str]) -> Output:
        wanted = _pattern(args)
        found = app.agent.observation.sampler.history().items()
        return Output("".join(_curve(*one) for one in found if _matches(wanted, one[0])))

    def page(state: State, flags: Flags, args: list[str]) -> Output:
        wanted = _pattern(args)
        found = app.agent.observation.sampler.history().items()
        text = metrics_page(one for one in found if _matches(wanted, one[0]))
        if not flags["out"]:
            return Output(text)
        state.write_text(flags["out"], text)
        return Output()

    return (
        Command("health", "print the health of the parts", health, "[MODULE]", flags=_HEALTH_FLAGS),
        Command(
            "health/history", "print what they reported", history, "[MODULE]", flags=_HEALTH_FLAGS
        ),
        Command("health/ok", "fail if a part is degraded", health_ok),
        Command(
            "metrics",
            "print the metrics",
            metrics,
            "[REGEXP]",
            flags=(_OUT, _SAMPLED, _FORMAT),
            regexp_args=True,
        ),
        Command("metrics/plot", "print their curves", plot, "[REGEXP]", regexp_args=True),
        Command(
            "metrics/html",
            "draw their curves for a browser",
            page,
            "[REGEXP]",
            flags=(_OUT,),
            regexp_args=True,
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


Row = tuple[str, ...]


def _columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, itemgetter(i)) for i, name in enumerate(names))


_METRIC_COLUMNS = _columns("Metric", "Labels", "Value")
_SAMPLED_COLUMNS = _columns("Metric", "Labels", *AGES)


def _pattern(args: list[str]) -> Regexp:
    if len(args) > 1:
        raise CommandFailed("expected at most one REGEXP")
    return compile_re2("".join(args))


def _matches(wanted: Regexp, series: tuple[str, str]) -> bool:
    return any(map(wanted.matches, series))


def _current(app: Target, wanted: Regexp) -> list[Row]:
    found = series_of(app.agent.ctx.registry.collect())
    return sorted((*series, f"{value:f}") for series, value in found if _matches(wanted, series))


def _sampled(sampler: MetricsSampler, wanted: Regexp) -> list[Row]:
    """Each series as it was, `-` where there is no sample of that age."""
    return [
        (*series, *(_value(values, position) for position in AGES.values()))
        for series, values in sampler.history().items()
        if _matches(wanted, series)
    ]


def _value(values: list[float | None], position: int) -> str:
    value = values[position] if position < len(values) else None
    return "-" if value is None else f"{value:f}"


_BARS = "▁▂▃▄▅▆▇█"


def _curve(series: tuple[str, str], newest_first: list[float | None]) -> str:
    """One line: least and greatest value, and the course between them, the oldest first."""
    values = [value for value in reversed(newest_first) if value is not None]
    low, high = min(values), max(values)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    bars = "".join(_BARS[round((value - low) / step)] for value in values)
    return f"{' '.join(filter(None, series))} [{low:g}, {high:g}] {bars}\n"


def _as_dicts(columns: Sequence[Column], rows: Iterable[Row]) -> list[dict[str, str]]:
    return [{column.name: column.cell(row) for column in columns} for row in rows]


_FORMATS: dict[str, Callable[[Sequence[Column], Iterable[Row]], str]] = {
    "table": table_text,
    "json": lambda columns, rows: json.dumps(_as_dicts(columns, rows), indent=2) + "\n",
    "yaml": lambda columns, rows: yaml.safe_dump(_as_dicts(columns, rows), sort_keys=False),
}


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

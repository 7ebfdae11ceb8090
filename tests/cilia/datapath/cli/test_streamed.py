# SPDX-License-Identifier: Apache-2.0
"""Many rows are shown as a list of them would be, without one."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import click
import pytest
import yaml

from cilia.datapath.cli import streamed
from statedb.shown.columns import layout

ROWS: list[dict[str, Any]] = [
    {"source": f"10.0.0.{n}:1", "flags": "x" * (n % 3), "more": [n]} for n in range(5)
]
COLUMNS = ["source", "flags"]


def shown(rows: list[dict[str, Any]], output: str, capsys: pytest.CaptureFixture[str]) -> str:
    streamed.show_streamed(iter(rows), COLUMNS, output)
    return capsys.readouterr().out


@pytest.mark.parametrize("count", [0, 1, 5])
def test_each_form_is_that_of_the_list(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ROWS[:count]
    assert shown(rows, "json", capsys) == json.dumps(rows, indent=2) + "\n"
    assert shown(rows, "yaml", capsys) == yaml.safe_dump(rows, sort_keys=False)
    cells = [[row[column] for column in COLUMNS] for row in rows]
    assert shown(rows, "table", capsys) == layout([["Source", "Flags"], *cells])


def test_later_rows_are_at_least_as_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streamed, "BATCH", 1)
    rows = [{"source": "longer than all", "flags": "a"}, {"source": "short", "flags": "b"}]
    lines = shown(rows, "table", capsys).splitlines()
    assert [line.rindex(flag) for line, flag in zip(lines[1:], "ab", strict=True)] == [18, 18]


@pytest.mark.parametrize("output", ["table", "json"])
def test_rows_are_not_kept(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for number in range(20_000):
            yield {"source": str(number) * 10, "flags": ""}

    monkeypatch.setattr(click, "echo", lambda part, nl: None)
    tracemalloc.start()
    try:
        streamed.show_streamed(rows(), COLUMNS, output)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()

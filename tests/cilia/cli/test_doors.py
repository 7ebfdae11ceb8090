# SPDX-License-Identifier: Apache-2.0
"""Each door to a terminal or a log: names of others are shown, and none is obeyed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import click
import pytest
import structlog
from click.testing import CliRunner

from cilia.__main__ import LazyGroup
from cilia.cli import shell, status
from cilia.program import logging
from statedb.shown.columns import layout
from statedb.shown.text import visible
from tests.cilia.cli.test_status import ANSWER

# Retitles the window, goes to the line's start, turns the direction, is no UTF-8, clears (C1).
HOSTILE = "web\x1b]0;x\x07\r\u202e\udce9\x9b2J\x00"
SHOWN = r"web\x1b]0;x\x07\r\u202e\xe9\x9b2J\x00"


def test_text_is_shown_with_escapes() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("café 网络 🙂") == "café 网络 🙂"
    assert visible("a\nb\tc", keep="\n") == r"a" "\nb" r"\tc"


def of_status(monkeypatch: pytest.MonkeyPatch) -> str:
    row = {"file": "x.yaml", "document": 1, "object": HOSTILE, "field": "f", "message": "m"}
    answer = {**ANSWER, "healthy": False, "tables": [], "problems": [row]}
    monkeypatch.setattr(status, "request", lambda *args: answer)
    return CliRunner().invoke(status.status, obj={"socket": "none"}).output


def of_shell(monkeypatch: pytest.MonkeyPatch) -> str:
    answer = {"stdout": HOSTILE, "stderr": "", "log": "", "files": {}, "error": ""}
    monkeypatch.setattr(shell, "request", lambda *args, **fields: answer)
    return CliRunner().invoke(shell.shell, ["x"], obj={"socket": "none"}).output


def of_an_error(monkeypatch: pytest.MonkeyPatch) -> str:
    @click.command()
    def fail() -> None:
        raise click.ClickException(f"no object {HOSTILE}")

    monkeypatch.setattr(LazyGroup, "get_command", lambda *args: fail)
    return CliRunner().invoke(LazyGroup("cilia"), ["fail"]).output


def of_the_log(monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    before = structlog.get_config()
    logging.configure("info", "console")
    try:
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            structlog.get_logger("x").exception(
                "wrong object", problem=HOSTILE, several=[{HOSTILE: 1}]
            )
    finally:
        structlog.configure(**before)
    return stream.getvalue()


DOORS: dict[str, Callable[[pytest.MonkeyPatch], str]] = {
    "status": of_status,
    "shell": of_shell,
    "error": of_an_error,
    "log": of_the_log,
    "table": lambda monkeypatch: layout([["Name", "X"], [HOSTILE, HOSTILE]]),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_lets_a_terminal_obey_a_name(monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    output: Any = DOORS[door](monkeypatch)
    assert SHOWN in output or SHOWN.replace("\\", "\\\\") in output
    assert output.replace("\n", "") == visible(output.replace("\n", ""))

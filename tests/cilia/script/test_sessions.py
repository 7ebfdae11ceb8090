# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cilia.script.commands import Command, Output
from cilia.script.sessions import MAX_SESSIONS, Sessions
from cilia.script.state import State


def _gate(released: threading.Event) -> Command:
    def run(state: Any, flags: dict[str, Any], args: list[str]) -> Output:
        released.wait(5)
        return Output("through\n")

    return Command("gate", "wait", run, words=lambda: ["a", "b"])


@pytest.fixture
def released() -> threading.Event:
    return threading.Event()


@pytest.fixture
def sessions(released: threading.Event) -> Iterator[Sessions]:
    sessions = Sessions(lambda: [_gate(released)])
    yield sessions
    released.set()
    sessions.close_all()


def test_a_line_returns_its_output_alone(sessions: Sessions) -> None:
    assert sessions.run("s", "echo a") == {
        "stdout": "a\n",
        "stderr": "",
        "error": "",
        "log": "",
        "files": {},
    }
    # env has no output here: what echo left in the buffer is not this line's.
    assert sessions.run("s", "env A=1")["stdout"] == ""
    for _ in range(2):
        assert sessions.run("s", "stdout ^a$")["log"] == "matched: a\n"


def test_a_session_keeps_variables_buffers_and_files(sessions: Sessions) -> None:
    for line in ("env A=1", "echo $A", "cp stdout f", "mkdir d", "cd d"):
        assert sessions.run("s", line)["error"] == ""
    assert sessions.run("s", "cat ../f")["stdout"] == "1\n"
    assert sessions.run("other", "cat f")["error"] != ""
    assert sessions.run("other", "echo [$A]")["stdout"] == "[]\n"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("cat missing", "no such file"),
        ("! echo a", "unexpected command success"),
        ("no-such", "unknown command 'no-such'"),
        ("echo 'a", "unterminated"),
        ("cmp --nope", "unknown flag"),
        ("[nope] echo", "unknown condition"),
        ("cat /etc/passwd", "outside"),
        ("cp stdout ../x", "outside"),
        ("cd ..", "outside"),
        ("exec true", "unknown command"),
        ("symlink a -> /etc/passwd", "unknown command"),
        ("break", "unknown command"),
    ],
)
def test_errors_are_answers(sessions: Sessions, line: str, error: str) -> None:
    assert error in sessions.run("s", line)["error"]


def test_files_come_with_the_line_and_go_back_when_changed(sessions: Sessions) -> None:
    answer = sessions.run("s", "sed a b d/x", {"d/x": "aa\n", "y": "y\n"})
    assert answer["files"] == {"d/x": "bb\n"}
    assert sessions.run("s", "cat y")["files"] == {}
    assert "outside" in sessions.run("s", "cat y", {"../y": ""})["error"]


def test_a_session_that_waits_blocks_no_other(
    sessions: Sessions, released: threading.Event
) -> None:
    answers = list[dict[str, Any]]()
    waiting = threading.Thread(target=lambda: answers.append(sessions.run("slow", "gate")))
    waiting.start()
    assert sessions.run("quick", "echo a")["stdout"] == "a\n"
    assert answers == []
    released.set()
    waiting.join(5)
    assert answers[0]["stdout"] == "through\n"


def test_a_line_has_a_limit() -> None:
    sessions = Sessions(list, limit_s=0.05)
    began = time.monotonic()
    assert "deadline" in sessions.run("s", "sleep 1h")["error"]
    assert time.monotonic() - began < 2
    # The next line has its own.
    assert sessions.run("s", "sleep 1ms")["error"] == ""
    sessions.close_all()


def test_the_background_lives_between_lines(sessions: Sessions) -> None:
    assert sessions.run("s", "sleep 1ms &")["error"] == ""
    assert sessions.run("s", "wait")["error"] == ""
    assert sessions.run("s", "sleep 1h &")["error"] == ""
    began = time.monotonic()
    sessions.close("s")
    assert time.monotonic() - began < 2


def test_closing_a_session_ends_the_line_that_runs() -> None:
    began, answers = threading.Event(), list[dict[str, Any]]()

    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        began.set()
        state.wait(30)

    sessions = Sessions(lambda: [Command("linger", "", run)])
    waiting = threading.Thread(target=lambda: answers.append(sessions.run("s", "linger")))
    waiting.start()
    assert began.wait(5)
    sessions.close("s")
    waiting.join(5)
    assert not waiting.is_alive()
    assert "deadline" in answers[0]["error"]


def test_the_least_used_session_goes_when_there_are_too_many(sessions: Sessions) -> None:
    for number in range(MAX_SESSIONS):
        sessions.run(str(number), f"env N={number}")
    sessions.run("0", "echo used")
    sessions.run("new", "echo")
    assert sessions.run("0", "echo $N")["stdout"] == "0\n"
    assert sessions.run("1", "echo $N")["stdout"] == "\n"


def test_requests_are_checked(sessions: Sessions) -> None:
    answer = sessions.answer({"session": "s", "line": "cat f", "files": {"f": "x\n"}})
    assert answer["stdout"] == "x\n"
    assert sessions.answer({"session": "s", "line": "", "close": True})["error"] == ""
    assert "no such file" in sessions.answer({"session": "s", "line": "cat f"})["error"]
    for body in ({"line": 1}, {"line": "", "files": []}, {"line": "", "files": {"f": None}}):
        with pytest.raises(ValueError, match="expected"):
            sessions.answer(body)


def test_commands_are_described_for_help_and_completion(sessions: Sessions) -> None:
    described = {row["name"]: row for row in sessions.describe()}
    assert described["gate"]["words"] == ["a", "b"]
    assert described["cmp"]["flags"] == ["--quiet"]
    assert described["cmp"]["usage"] == "cmp [-q] [--quiet] FILE FILE"
    assert "byte for byte" in described["cmp"]["help"]
    assert "exec" not in described

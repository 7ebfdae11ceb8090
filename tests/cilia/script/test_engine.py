# SPDX-License-Identifier: Apache-2.0
"""What a script cannot show of the engine; the rest is in testdata/script."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cilia.script.commands import Command, Flag, Output
from cilia.script.conditions import Condition
from cilia.script.engine import Engine
from cilia.script.errors import CommandFailed, ScriptFailed, UnknownName
from cilia.script.generic import GENERIC_COMMANDS
from cilia.script.state import State
from tests.cilia.script.conftest import Execute


class ForeignCommand:
    """A command that knows nothing of this package."""

    name = "foreign"
    summary = "print what it got"
    usage = "ARG"
    detail = ("A sentence.",)
    flags = (Flag("out", "o", "str"),)
    regexp_args = False

    def run(self, state: Any, flags: dict[str, Any], args: list[str]) -> Output:
        return Output(f"{flags} {args}")


def test_a_command_of_another_package_runs_by_its_shape(execute: Execute, state: State) -> None:
    execute("foreign -o x a", ForeignCommand())
    assert state.stdout == "{'out': 'x'} ['a']"
    execute("! exec sh -c 'exit 1'\nforeign --help", ForeignCommand())
    assert state.stdout.startswith("foreign [-o] [--out=string] ARG\n\tprint what it got\n")


def test_a_timeout_before_the_deadline_is_an_ordinary_failure(execute: Execute) -> None:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        raise TimeoutError("a second is over")

    execute("! slow", Command("slow", "", run))


def test_a_timeout_at_the_deadline_satisfies_no_prefix(execute: Execute, state: State) -> None:
    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        time.sleep(state.remaining_s())
        raise TimeoutError("the script's time is over")

    state.deadline = time.monotonic() + 0.02
    with pytest.raises(ScriptFailed, match="time is over"):
        execute("! slow", Command("slow", "", run))


@pytest.mark.parametrize("script", ["cat missing", "* cat missing", "? cat missing\n\necho"])
def test_the_deadline_ends_every_script(execute: Execute, state: State, script: str) -> None:
    began = time.monotonic()
    state.deadline = began + 0.05
    with pytest.raises(ScriptFailed):
        execute(script + "\nsleep 10s")
    assert time.monotonic() - began < 1


def test_cancelling_from_another_thread_ends_the_script(execute: Execute, state: State) -> None:
    timer = threading.Timer(0.02, state.cancel)
    timer.start()
    with pytest.raises(ScriptFailed, match="deadline"):
        execute("sleep 9s")
    timer.join()


def test_many_scripts_share_an_engine(tmp_path: Path) -> None:
    engine = Engine(GENERIC_COMMANDS, retry_interval_s=0.001)
    failures = list[BaseException]()

    def run(number: int) -> None:
        state = State(
            tmp_path / str(number), deadline=time.monotonic() + 10, env={"N": str(number)}
        )
        try:
            engine.run(state, "echo $N\ncp stdout f\nsleep 2ms\ncat f\nstdout ^$N$\n" * 5)
        except ScriptFailed as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {path.name for path in tmp_path.iterdir()} == {str(number) for number in range(8)}


def test_retry_count_is_seen_by_commands_and_reset(execute: Execute, state: State) -> None:
    seen = list[int]()

    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        seen.append(state.retry_count)
        if len(seen) % 3:
            raise CommandFailed("not yet")

    execute("* count\n# next\n* count", Command("count", "", run))
    assert seen == [0, 1, 2, 0, 1, 2]
    assert state.retry_count == 0


def test_the_wait_between_rounds_doubles_up_to_the_limit(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = list[float]()
    monkeypatch.setattr(state, "wait", waits.append)

    def run(state: State, flags: dict[str, Any], args: list[str]) -> None:
        if len(waits) < 5:
            raise CommandFailed("not yet")

    Engine([Command("late", "", run)]).run(state, "* late")
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_conditions_with_suffix(state: State) -> None:
    condition = Condition("has", "a variable is set", lambda s, suffix: suffix in s.env, True)
    engine = Engine(GENERIC_COMMANDS, conditions=[condition])
    engine.run(state, "env A=1\n[has:A] env B=1\n[!has:A] env C=1\n[!has:C] env D=1\nhelp [has]\n")
    assert {"B", "D"} <= set(state.env)
    assert "C" not in state.env
    assert state.stdout == "[has:*]\n\ta variable is set\n"
    for guard, what in (("[has] stop", "needs a suffix"), ("[nope:x] stop", "unknown condition")):
        with pytest.raises(UnknownName, match=what):
            engine.run_line(state, guard)


def test_the_sink_receives_the_log_as_it_is_written(tmp_path: Path) -> None:
    log = list[str]()
    state = State(tmp_path / "work", deadline=time.monotonic() + 5, sink=log.append)
    Engine(GENERIC_COMMANDS).run(state, "# Section\necho a\n! cat missing\n")
    assert "".join(log).startswith("# Section\n> echo a\n[stdout]\na\n> ! cat missing\n[")


def test_bytes_that_are_no_text_pass_through(execute: Execute, state: State) -> None:
    (state.workdir / "raw").write_bytes(b"a\xff\x00\r\nb")
    execute("cp raw copy\nreplace a A copy\nsed b B copy\ncat raw\ncp stdout again\ncmp raw again")
    assert (state.workdir / "copy").read_bytes() == b"A\xff\x00\r\nB"


def test_more_output_than_a_pipe_holds_blocks_nobody(execute: Execute, state: State) -> None:
    execute("exec head -c 300000 /dev/zero &\nexec head -c 300000 /dev/zero\nwait")
    assert len(state.stdout) == 300000


def test_a_grandchild_that_keeps_the_output_open_holds_nothing_up(execute: Execute) -> None:
    began = time.monotonic()
    execute("exec sh -c 'sleep 3 & echo started'\nstdout started")
    assert time.monotonic() - began < 2


def test_a_program_that_ignores_the_interrupt_is_killed(execute: Execute, state: State) -> None:
    state.deadline = time.monotonic() + 0.3
    with pytest.raises(ScriptFailed, match="interrupted"):
        execute("exec sh -c 'trap \"\" INT; while :; do sleep 0.05; done'")

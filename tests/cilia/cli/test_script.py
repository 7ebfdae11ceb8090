# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cilia.cli.script import script
from tests.cilia.cli.terminal import Terminal

SUITE = "tests.cilia.script.script_suite:SUITE"
GOOD = "# Good\necho good\ncmp stdout want\n-- want --\ngood\n"
BAD = "# Bad\necho bad\ncmp stdout want\n-- want --\ngood\n"


def run(*arguments: str, color: bool = False) -> Result:
    return CliRunner().invoke(script, ["run", "--suite", SUITE, *arguments], color=color)


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "bad.txtar").write_text(BAD)
    (tmp_path / "sub/good.txtar").write_text(GOOD)
    (tmp_path / "skip.txtar").write_text("skip 'not here'\n")
    (tmp_path / "note.txt").write_text("no script\n")
    return tmp_path


def test_all_is_well_when_every_script_succeeds_or_is_skipped(scripts: Path) -> None:
    result = run(str(scripts / "sub"), str(scripts / "skip.txtar"))
    assert result.exit_code == 0
    ok, skipped, reason, summary = result.output.splitlines()
    assert ok.startswith(f"ok   {scripts}/sub/good.txtar (")
    assert skipped.startswith("skip ")
    assert reason == "     not here"
    assert summary == "2 scripts, 0 failed"


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_failure_shows_section_line_and_diff(scripts: Path, jobs: str) -> None:
    result = run("-j", jobs, str(scripts))
    assert result.exit_code == 1
    assert f"{scripts}/bad.txtar:3: cmp stdout want: stdout and want differ" in result.output
    assert "section, line 1: Bad" in result.output
    assert "-bad\n" in result.output
    assert "+good\n" in result.output
    assert result.output.endswith("3 scripts, 1 failed\n")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_verbose_shows_each_command_with_its_output(scripts: Path, jobs: str) -> None:
    quiet, verbose = (run("-j", jobs, *more, str(scripts / "sub")) for more in ([], ["-v"]))
    assert "echo good" not in quiet.output
    assert "# Good\n> echo good\n[stdout]\ngood\n" in verbose.output


def test_update_rewrites_what_differs(scripts: Path) -> None:
    bad = scripts / "bad.txtar"
    result = run("--update", str(bad))
    assert result.exit_code == 0
    assert "updated want" in result.output
    assert bad.read_text() == BAD.replace("good", "bad")
    assert run(str(bad)).exit_code == 0


def test_colours_are_for_terminals_only(scripts: Path) -> None:
    assert "\x1b[31m" in run(str(scripts), color=True).output
    assert "\x1b" not in run(str(scripts)).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["/no/such.txtar"], "does not exist"),
        (["--suite", "tests.nothing:SUITE", "."], "no suite tests.nothing:SUITE"),
        (["--suite", "tests.cilia.script.script_suite:OUTPUT", "."], "is not a suite"),
        (["-j", "0", "."], "not in the range"),
    ],
)
def test_wrong_calls_end_with_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_directory_without_scripts_is_a_wrong_call(tmp_path: Path) -> None:
    assert run(str(tmp_path)).exit_code == 2


def test_break_reads_commands_from_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    file.write_text("env A=before\nbreak\necho $A\nstdout '^typed$'\n")
    terminal = Terminal("script", "run", "--suite", SUITE, str(file))
    try:
        terminal.expect("debug> ")
        terminal.type("echo $A\n")
        terminal.expect("[stdout]\r\nbefore")
        terminal.expect("debug> ")
        terminal.type("no-such\n")
        terminal.expect("unknown command 'no-such'")
        terminal.expect("debug> ")
        terminal.type("env A=typed\n\x04")
        terminal.expect("1 scripts, 0 failed")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()

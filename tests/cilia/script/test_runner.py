# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cilia.script.errors import ScriptFailed
from cilia.script.runner import run_file, script_flags
from tests.cilia.script.script_suite import SUITE


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("#! --a --b=c\ncmd", ["--a", "--b=c"]),
        ("#!--a", ["--a"]),
        ("#!   --a   ", ["--a"]),
        ("#! --a  --b", ["--a", "--b"]),
        ("#! --f=$WORK/x", ["--f=/w/x"]),
        ("#!", []),
        ("#! ", []),
        ("# --a", []),
        ("\n#! --a", []),
        ("", []),
    ],
)
def test_flags_of_the_first_line(script: str, flags: list[str]) -> None:
    assert script_flags(script, Path("/w")) == flags


def test_variants_add_their_flags_after_the_scripts_own(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    file.write_text("#! --own\nfake/flags\ncmp stdout want\n-- want --\n--own\n--more=1\n")
    suite = dataclasses.replace(SUITE, variants={"": (), "more": ("--more=1",)})
    run_file(file, suite, variant="more")
    for variant in ("", None):
        with pytest.raises(ScriptFailed):
            run_file(file, suite, variant=variant)


def test_the_work_directory_is_removed_unless_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    file.write_text("cp file $DATADIR/left-over\nenv WORK\ncp stdout $DATADIR/where\n-- file --\n")
    run_file(file, SUITE)
    assert not Path((tmp_path / "where").read_text().strip().removeprefix("WORK=")).exists()
    run_file(file, SUITE, workdir=tmp_path / "kept")
    assert (tmp_path / "kept/file").exists()


def test_update_leaves_a_script_alone_that_has_nothing_new(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    file.write_bytes(b"echo a\ncmp stdout want\n--  want  --\na")
    file.chmod(0o444)
    assert run_file(file, SUITE, update=True).updated == ()
    assert file.read_bytes() == b"echo a\ncmp stdout want\n--  want  --\na"


def test_update_keeps_what_was_found_before_a_failure_out(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    text = "echo a\ncmp stdout want\ncat missing\n-- want --\nb\n"
    file.write_text(text)
    with pytest.raises(ScriptFailed):
        run_file(file, SUITE, update=True)
    assert file.read_text() == text


def test_each_run_has_a_fresh_application_and_directory(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    file.write_text(
        "! exists made\nfake/count\nstdout 'inside 0 outside 0'\nfake/add\nmkdir made\nhive start\n"
    )
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: run_file(file, SUITE), range(12)))
    assert len(results) == 12


def test_a_suite_may_define_further_variables(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    file.write_text("env HEALTHADDR DATADIR\n")
    log = list[str]()
    suite = dataclasses.replace(SUITE, environment={"HEALTHADDR": "127.0.0.7"})
    run_file(file, suite, sink=log.append)
    assert f"HEALTHADDR=127.0.0.7\nDATADIR={tmp_path}\n" in "".join(log)

# SPDX-License-Identifier: Apache-2.0
"""A long run that is killed goes on with what it had finished."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.journal import ROOT, Busy, journal, status

#: Does three pieces, and then waits to be killed, in the middle of a line if so asked.
RUN = """
import sys
from pathlib import Path
from tests.soak.journal import journal
with journal("run", {"pieces": 5}, Path(sys.argv[1]), "abc") as kept:
    for number in range(3):
        kept.add(number, f"{number + 1} of 5")
    kept._file.write(b'{"piece": 3, "pro')
    kept._file.flush()
    print("three", flush=True)
    input()
"""


def test_killed_run_goes_on_after_its_last_whole_piece(tmp_path: Path) -> None:
    line = [sys.executable, "-c", RUN, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "three\n"
        with pytest.raises(Busy), journal("run", {"pieces": 5}, tmp_path, "abc"):
            pass
        assert status(tmp_path) == ["run: 3 of 5, at work (abc)"]
        run.kill()
    assert status(tmp_path) == ["run: 3 of 5, ended early; started again it goes on (abc)"]
    with journal("run", {"pieces": 5}, tmp_path, "abc") as kept:
        assert kept.pieces == [0, 1, 2]
        kept.add(3, "4 of 5")
    with journal("run", {"pieces": 5}, tmp_path, "abc") as kept:
        assert kept.pieces == [0, 1, 2, 3]
        kept.add(4, "5 of 5")
        kept.finish("harmless")
    assert status(tmp_path) == ["run: 5 of 5, harmless (abc)"]


@pytest.mark.parametrize(
    ("settings", "commit", "finish"),
    [({"pieces": 6}, "abc", False), ({"pieces": 5}, "abd", False), ({"pieces": 5}, "abc", True)],
    ids=["other settings", "other commit", "after a result"],
)
def test_run_begins_anew(
    tmp_path: Path, settings: dict[str, int], commit: str, finish: bool
) -> None:
    with journal("run", {"pieces": 5}, tmp_path, "abc") as kept:
        kept.add(0, "1 of 5")
        if finish:
            kept.finish("harmless")
    with journal("run", settings, tmp_path, commit) as kept:
        assert kept.pieces == []


def test_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"bench": "x"}\n')
    assert status(tmp_path) == []

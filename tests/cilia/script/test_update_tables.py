# SPDX-License-Identifier: Apache-2.0
"""Update mode of the commands that compare tables, with the engine that records what they found."""

from __future__ import annotations

from pathlib import Path

import pytest

from cilia.script.errors import ScriptFailed
from cilia.script.runner import run_file
from tests.statedb_application import SUITE

SCRIPT = """\
db/insert books emma.yaml
db/cmp --timeout=10ms books want
-- emma.yaml --
title: Emma
year: 1815
-- want --
Year   Title
"""


def test_a_table_is_recorded_when_the_timeout_is_over(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    file.write_text(SCRIPT)
    with pytest.raises(ScriptFailed, match="table mismatch"):
        run_file(file, SUITE)
    assert file.read_text() == SCRIPT
    assert run_file(file, SUITE, update=True).updated == ("want",)
    assert file.read_text() == SCRIPT + "1815   Emma\n"
    assert run_file(file, SUITE).updated == ()


def test_a_table_that_comes_to_match_in_time_is_not_recorded(tmp_path: Path) -> None:
    file = tmp_path / "a.txtar"
    text = "library/later Emma 1815 --after=20ms\ndb/cmp books want\n-- want --\nTitle\nEmma\n"
    file.write_text(text)
    assert run_file(file, SUITE, update=True).updated == ()
    assert file.read_text() == text

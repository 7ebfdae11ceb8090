# SPDX-License-Identifier: Apache-2.0
"""docs/scripts.md is true: its proofs exist, and its examples do what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cilia.script.commands import Command
from cilia.script.errors import ScriptFailed
from cilia.script.runner import run_file
from tests.cilia.script.conftest import Execute
from tests.cilia.script.script_suite import SUITE
from tests.proofs import ROOT, exists, proofs_of, scripts_without_statement

PAGE = (ROOT / "docs/scripts.md").read_text()
PROOFS = proofs_of("docs/scripts.md")


def test_there_is_a_table() -> None:
    assert len(PROOFS) > 80


@pytest.mark.parametrize("statement", PROOFS)
def test_each_statement_has_proofs_that_exist(statement: str) -> None:
    assert PROOFS[statement]
    assert not [name for name in PROOFS[statement] if not exists(name)]


def test_every_script_of_the_language_proves_something() -> None:
    about_failures = {"testdata/script/failures.txtar"}
    assert scripts_without_statement("script", PROOFS) == about_failures


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_failure_on_the_page_is_what_one_looks_like(tmp_path: Path) -> None:
    file = tmp_path / "demo.txtar"
    file.write_text("# A greeting\necho hello\ncmp stdout want\n-- want --\ngood day\n")
    with pytest.raises(ScriptFailed) as failed:
        run_file(file, SUITE)
    assert str(failed.value).replace(f"{tmp_path}/", "") + "\n" in blocks("")


def test_the_command_on_the_page_works(execute: Execute) -> None:
    (code,) = blocks("python")
    names: dict[str, Any] = {}
    exec(code, names)
    greet: Command = names["GREET"]
    execute("! greet\ngreet -l you\nstdout '^hello you!$'\ngreet you\nstdout '^hello you$'", greet)

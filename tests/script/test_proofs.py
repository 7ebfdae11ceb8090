# SPDX-License-Identifier: Apache-2.0
"""docs/scripts.md is true: its proofs exist, and its examples do what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from cilia.script import Command, ScriptFailed, run_file
from tests.script.conftest import Execute
from tests.script.script_suite import SUITE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scripts.md").read_text()
ROWS = [
    tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
    for line in PAGE.partition("## What proves it")[2].splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| Statement"))
]


def test_there_is_a_table() -> None:
    assert len(ROWS) > 80


@pytest.mark.parametrize(("statement", "proofs"), ROWS)
def test_each_statement_has_proofs_that_exist(statement: str, proofs: str) -> None:
    names = re.findall(r"`([^`]+)`", proofs)
    assert names
    assert not [name for name in names if not exists(name)]


def exists(name: str) -> bool:
    path, _, test = name.partition("::")
    file = ROOT / path
    if not file.is_file():
        return False
    if not test:
        return path.startswith("testdata/") and path.endswith(".txtar")
    functions = [
        n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)
    ]
    return test in functions


def test_every_script_of_the_language_proves_something() -> None:
    named = {name for _, proofs in ROWS for name in re.findall(r"`([^`]+)`", proofs)}
    scripts = {f"testdata/script/{file.name}" for file in (ROOT / "testdata/script").iterdir()}
    assert scripts - named == {"testdata/script/failures.txtar"}  # about how failures look


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

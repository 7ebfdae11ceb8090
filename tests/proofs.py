# SPDX-License-Identifier: Apache-2.0
"""Pages that say what proves each of their statements, and whether such a proof exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = "## What proves it"
_HEAD = re.compile(r"\|(-|\s*(Statement|Feature)\s*\|)")


def proofs_of(page: str) -> dict[str, list[str]]:
    """Statement -> names of proofs, from the tables below the page's heading.

    A statement that is there twice is an error: one of the two would not be looked at.
    """
    text = (ROOT / page).read_text().partition(HEADING)[2]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|") and not _HEAD.match(line):
            statement, proofs = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            assert statement not in found, statement
            found[statement] = re.findall(r"`([^`]+)`", proofs)
    return found


def scripts_without_statement(folder: str, proofs: dict[str, list[str]]) -> set[str]:
    """The golden scripts of `testdata/FOLDER` that no statement names."""
    named = {name for names in proofs.values() for name in names}
    scripts = {str(file.relative_to(ROOT)) for file in (ROOT / "testdata" / folder).iterdir()}
    return scripts - named


def exists(name: str) -> bool:
    """Whether `FILE::TEST` or the script `FILE` is there."""
    path, _, test = name.partition("::")
    file = ROOT / path
    if not file.is_file():
        return False
    if not test:
        return path.startswith("testdata/") and path.endswith(".txtar")
    return test in _tests(file)


@cache
def _tests(file: Path) -> frozenset[str]:
    """The names at the top of a module that pytest collects."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]):
                names.add(name)
    return frozenset(name for name in names if name.startswith(("test", "Test")))

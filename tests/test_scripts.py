# SPDX-License-Identifier: Apache-2.0
"""Runs every golden script below testdata/.

A script of testdata/FOLDER/ is run by the suite of that folder if there is one (script_suite.py in
tests/FOLDER or tests/cilia/FOLDER), else by that of the agent: once for each variant of the suite,
each time in a directory of its own, so that any number of workers may share the scripts.
`--update-golden` rewrites what they expect.

A comment line `# expected failure: SENTENCE` before the first command says that the script states
what is right and the product does not do it yet. Such a script must fail; one that passes is an
error, so that the line goes when the fault does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from cilia.script.errors import ScriptFailed
from cilia.script.runner import Suite, run_file
from tests.expected_failure import expected_failure

pytestmark = pytest.mark.usefixtures("short_grace")

TESTDATA = Path(__file__).parent.parent / "testdata"
AGENT_SUITE = "cilia.agent.script.application"
#: A script that is to fail is not waited for as long as one that is to pass.
FAILURE_DEADLINE_S = 0.4


def suite_of(folder: str) -> Suite:
    """The suite of a folder below testdata/."""
    suite = import_module(suite_module(folder)).SUITE
    assert isinstance(suite, Suite)
    return suite


def suite_module(folder: str) -> str:
    """The module of a folder's suite."""
    for parent in ("tests", "tests/cilia"):
        if (TESTDATA.parent / parent / folder / "script_suite.py").exists():
            return f"{parent}/{folder}/script_suite".replace("/", ".")
    return AGENT_SUITE


def cases() -> Sequence[object]:
    found = []
    for file in sorted(TESTDATA.rglob("*.txtar")):
        name = file.relative_to(TESTDATA).with_suffix("")
        folder = str(name.parent)
        for variant in variants_of(folder):
            label = f"{name}-{variant}" if variant else str(name)
            found.append(pytest.param(file, folder, variant, id=label, marks=marks_of(file)))
    return found


def marks_of(file: Path) -> list[pytest.MarkDecorator]:
    """The mark of a script that is to fail."""
    reason = expected_failure(file)
    if not reason:
        return []
    return [pytest.mark.xfail(strict=True, raises=pytest.fail.Exception, reason=reason)]


def variants_of(folder: str) -> list[str]:
    if find_spec(suite_module(folder)) is None:
        return [""]  # so that the test itself fails, with the name of what is missing
    return list(suite_of(folder).variants)


@pytest.mark.parametrize(("file", "folder", "variant"), cases())
def test_script(
    file: Path, folder: str, variant: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    update = bool(pytestconfig.getoption("--update-golden"))
    suite = suite_of(folder)
    if expected_failure(file):
        suite, update = replace(suite, deadline_s=FAILURE_DEADLINE_S), False
    failure = ""
    try:
        result = run_file(
            file,
            suite,
            variant=variant,
            update=update,
            workdir=tmp_path,
            sink=lambda text: print(text, end=""),
        )
    except ScriptFailed as failed:
        failure = str(failed)
    if failure:  # outside of the handler, so that no traceback is added to what it says
        pytest.fail(failure, pytrace=False)
    if result.ending.skipped:
        pytest.skip(result.ending.message or "skip")

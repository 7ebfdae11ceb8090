# SPDX-License-Identifier: Apache-2.0
"""The package as such: its names, its doctests, its README, and that it stands alone."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import statedb

PACKAGE = Path(statedb.__file__).parent
MODULES = sorted(
    module.name.removeprefix("statedb.")
    for module in pkgutil.walk_packages(statedb.__path__, "statedb.")
)
SOURCES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = {"cilia", "tables", "bpf", "reconcilers", "tests"}


def test_every_exported_name_is_there_and_sorted() -> None:
    assert len(set(statedb.__all__)) == len(statedb.__all__)
    for name in statedb.__all__:
        assert getattr(statedb, name).__module__.partition(".")[0] in (
            "statedb",
            "typing",
            "builtins",
        )


def test_every_public_error_is_exported() -> None:
    from statedb import errors

    exported = {name for name in vars(errors) if isinstance(getattr(errors, name), type)}
    tree = errors.__doc__ or ""
    for name in exported:
        assert name in tree, f"{name} is not in the tree of errors.py"


def test_a_table_to_read_offers_nothing_that_writes() -> None:
    watched = {"all", "by_revision", "filled", "get", "get_row", "initialized", "list"}
    watched |= {"lower_bound", "num_objects", "prefix"}
    asked = {"graveyard_size", "num_trackers", "pending_initializers", "revision"}
    asked |= {"stalled_initializers", "usage"}
    described = {"budget_bytes", "columns", "index", "indexes", "name", "primary", "primary_key"}
    described |= {"row_type", "secondary", "to_json"}
    offered = {name for name in dir(statedb.Table) if not name.startswith("_")}
    questions = watched | {f"{name}_watch" for name in watched} | asked
    assert questions <= offered <= questions | described


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_nothing_of_the_project(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        names: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & FORBIDDEN, (source, line)


def test_package_works_where_nothing_else_of_the_project_is(tmp_path: Path) -> None:
    os.symlink(PACKAGE, tmp_path / "statedb")
    for library in PACKAGE.parent.glob("*__mypyc*.so"):  # the compiled modules share one
        os.symlink(library, tmp_path / library.name)
    script = """
import sys
import statedb
db = statedb.DB()
table = statedb.new_table(db, "t", statedb.Index("id", key=lambda obj: obj))
with db.write_txn(table) as wtxn:
    table.insert(wtxn, 1)
assert list(table.all(db.read_txn())) == [1]
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"cilia", "tables", "bpf", "reconcilers"}, loaded
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=15
    )


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_module_run(name: str) -> None:
    module = importlib.import_module(f"statedb.{name}")
    source = next(
        path
        for path in (PACKAGE / f"{name.replace('.', '/')}{end}" for end in (".py", "/__init__.py"))
        if path.exists()
    )
    if ">>>" not in source.read_text():
        return
    tests = doctest.DocTestParser()
    text = "\n\n".join(_docstrings(source))
    test = tests.get_doctest(text, dict(vars(module)), name, str(source), 0)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


def _docstrings(source: Path) -> list[str]:
    """All docstrings of a module, read from its source: compiled functions may have none."""
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node)
            if doc and ">>>" in doc:
                found.append(doc)
    return found


def test_examples_of_the_readme_run() -> None:
    readme = PACKAGE / "README.md"
    result = doctest.testfile(str(readme), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 30
    assert result.failed == 0

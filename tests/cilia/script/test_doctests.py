# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import doctest
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cilia.script

MODULES = [f"cilia.script.{module.name}" for module in pkgutil.iter_modules(cilia.script.__path__)]


@pytest.mark.parametrize("name", [*MODULES, "cilia.cli.completer"])
def test_examples_in_docstrings_hold(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_there_are_examples() -> None:
    assert sum(doctest.testmod(import_module(name)).attempted for name in MODULES) >= 10


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith(".documents")])
def test_only_the_standard_library_re2_and_this_package_are_imported(name: str) -> None:
    tree = ast.parse(Path(str(import_module(name).__file__)).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {
        module
        for module in imported
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "re2"}
        and not module.startswith("cilia.script")
    }
    assert foreign == set()
    assert "cilia.script.documents" not in imported


def test_everything_exported_exists() -> None:
    assert all(hasattr(cilia.script, name) for name in cilia.script.__all__)

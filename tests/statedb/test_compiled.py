# SPDX-License-Identifier: Apache-2.0
"""Compiled modules run only while they are those of the sources as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from statedb import compiled
from statedb.compiled import MANIFEST, STATEDB, SUFFIX, Group, StaleError, prefer

ROOT = Path(__file__).resolve().parents[2]
SHOW = "import statedb._row as row; print(row.COMPILED, row.__file__)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of statedb with its compiled modules, as of now."""
    if not compiled.is_current(STATEDB):
        pytest.skip("no compiled statedb of the sources as they are: make native makes it")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "statedb", tmp_path / "statedb", ignore=ignored)
    shutil.copytree(STATEDB.home, tmp_path / "build" / "native" / "statedb")
    return tmp_path


def run_in(checkout: Path, asked: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CILIA_COMPILED"}
    if asked is not None:
        environment["CILIA_COMPILED"] = asked
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_fits_its_sources_is_used(checkout: Path) -> None:
    file = checkout / "build/native/statedb/statedb" / f"_row{SUFFIX}"
    assert run_in(checkout).stdout == f"True {file}\n"
    assert run_in(checkout, "1").stdout == f"True {file}\n"


def test_an_edited_file_is_what_runs(checkout: Path) -> None:
    # What is edited is not itself compiled, but constants of it are.
    with (checkout / "statedb" / "errors.py").open("a") as file:
        file.write("# edited\n")
    assert run_in(checkout).stdout == f"False {checkout / 'statedb' / '_row.py'}\n"
    demanded = run_in(checkout, "1")
    assert demanded.returncode != 0
    assert "StaleError: statedb: no compiled modules of the sources" in demanded.stderr


def test_the_sources_can_be_asked_for(checkout: Path) -> None:
    assert run_in(checkout, "0").stdout == f"False {checkout / 'statedb' / '_row.py'}\n"


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"suffix": ".other.so", "sources": {}}'])
def test_a_manifest_that_says_nothing_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    monkeypatch.setattr(compiled, "NATIVE", tmp_path)
    group = Group("some", ("statedb/_row.py",))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / MANIFEST).write_text(manifest)
    path = ["sources"]
    monkeypatch.delenv("CILIA_COMPILED", raising=False)
    prefer(group, "statedb", path)
    assert path == ["sources"]
    monkeypatch.setenv("CILIA_COMPILED", "1")
    with pytest.raises(StaleError, match="some: no compiled modules"):
        prefer(group, "statedb", path)

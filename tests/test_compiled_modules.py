# SPDX-License-Identifier: Apache-2.0
"""Compiled modules run only while they are those of the sources as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cilia import compiled_modules
from cilia.compiled_modules import (
    HOOK,
    MANIFEST,
    SUFFIX,
    Finder,
    Group,
    StaleError,
    groups,
    is_current,
)

ROOT = Path(__file__).resolve().parents[1]
SHOW = "import statedb._row as row; print(row.COMPILED, row.__file__)"
# As the hook of the virtual environment does for the checkout that it is of.
INSTALL = "from cilia import compiled_modules; compiled_modules.install(); "
(STATEDB,) = (group for group in groups() if group.name == "statedb")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of statedb with its compiled modules, as of now."""
    if not is_current(STATEDB):
        pytest.skip("no compiled statedb of the sources as they are: make native makes it")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("statedb", "reconcilers", "cilia"):  # of the others only the lists are read
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copytree(STATEDB.home, tmp_path / "build" / "native" / "statedb")
    return tmp_path


def run_in(
    checkout: Path, asked: str | None = None, before: str = INSTALL
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CILIA_COMPILED"}
    if asked is not None:
        environment["CILIA_COMPILED"] = asked
    return subprocess.run(
        [sys.executable, "-c", before + SHOW],
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


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 finds these methods quickly")
def test_tables_have_no_place_for_a_dictionary(checkout: Path) -> None:
    look = (
        "from statedb.changes import ChangeIterator; from statedb.table import RWTable, Table; "
        "print(*(c.__dictoffset__ for c in (ChangeIterator, RWTable, Table)))"
    )
    shown = subprocess.check_output([sys.executable, "-c", INSTALL + look], cwd=checkout, text=True)
    assert shown == "0 0 0\n"


def test_an_edited_file_is_what_runs(checkout: Path) -> None:
    # What is edited is not itself compiled, but constants of it are.
    with (checkout / "statedb" / "errors.py").open("a") as file:
        file.write("# edited\n")
    assert run_in(checkout).stdout == f"False {checkout / 'statedb' / '_row.py'}\n"
    demanded = run_in(checkout, "1")
    assert demanded.returncode != 0
    assert "StaleError: statedb: no compiled modules of the sources" in demanded.stderr


def test_a_module_that_is_listed_since_makes_the_group_stale(checkout: Path) -> None:
    """The files of the others are as they were, and of it there is nothing compiled."""
    with (checkout / "statedb" / "compiled.py").open("a") as file:
        file.write('MODULES += ("statedb/errors.py",)\n')
    assert run_in(checkout).stdout == f"False {checkout / 'statedb' / '_row.py'}\n"


def test_the_sources_can_be_asked_for(checkout: Path) -> None:
    assert run_in(checkout, "0").stdout == f"False {checkout / 'statedb' / '_row.py'}\n"


def test_another_checkout_s_sources_are_not_replaced(tmp_path: Path) -> None:
    """The environment's hook is for the checkout that it is of."""
    hook = Path(sysconfig.get_path("purelib"), HOOK)
    if not hook.exists():
        pytest.fail(f"{hook} is not there: install/setup.sh puts it")
    shutil.copytree(ROOT / "statedb", tmp_path / "statedb")
    assert run_in(tmp_path, before="").stdout == f"False {tmp_path / 'statedb' / '_row.py'}\n"
    assert run_in(tmp_path, "1", before="").returncode == 0


def test_the_environment_has_the_finder_of_this_checkout() -> None:
    where = "import sys; print([type(f).__name__ for f in sys.meta_path if hasattr(f, 'root')])"
    environment = os.environ | {"CILIA_COMPILED": ""}
    shown = subprocess.run(
        [sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "['Finder']\n", "run install/setup.sh"


def test_each_list_names_modules_that_there_are() -> None:
    modules = [module for group in groups() for module in group.modules]
    assert len(modules) == len(set(modules))
    assert [module for module in modules if not (ROOT / module).is_file()] == []
    lists = {str(path.relative_to(ROOT)) for path in ROOT.glob("[a-z]*/**/compiled.py")}
    lists = {name for name in lists if not name.startswith(("build/", "tests/"))}
    assert lists == set(compiled_modules.LISTS.values())


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"suffix": ".other.so", "sources": {}}'])
def test_a_manifest_that_says_nothing_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    monkeypatch.setattr(compiled_modules, "NATIVE", tmp_path)
    (tmp_path / "statedb").mkdir()
    (tmp_path / "statedb" / MANIFEST).write_text(manifest)
    assert not is_current(Group("statedb", ("statedb/_row.py",)))
    path = [str(ROOT / "statedb")]
    assert Finder(demanded=False).find_spec("statedb._row", path) is None
    with pytest.raises(StaleError, match="statedb: no compiled modules"):
        Finder(demanded=True).find_spec("statedb._row", path)

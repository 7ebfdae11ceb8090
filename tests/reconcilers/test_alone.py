# SPDX-License-Identifier: Apache-2.0
"""statedb and the reconciler engine, installed without anything else of the project."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import statedb

ROOT = Path(statedb.__file__).parents[1]
#: What the two need of others: four libraries, and what anyio itself imports.
LIBRARIES = (
    "msgspec",
    "anyio",
    "mypy_extensions",
    "sortedcontainers",
    "idna",
    "typing_extensions",
)

PROGRAM = '''
"""A table of wishes, a target that refuses the first attempt, and a row that is deleted."""
import importlib.util
import sys

import anyio
import msgspec

import reconcilers
from reconcilers import Config, Reconciler
from statedb import DB, Index, Status, StatusKind, new_table
from statedb.status import pending

for absent in ("cilia", "tables", "bpf", "tests"):
    assert importlib.util.find_spec(absent) is None, absent


class Wish(msgspec.Struct, frozen=True):
    name: str
    value: int
    status: Status


class Target:
    def __init__(self):
        self.held = {"foreign": 1}
        self.attempts = []

    def update(self, txn, revision, wish):
        self.attempts.append(wish.name)
        if self.attempts.count(wish.name) < 3 and wish.name == "poor":
            raise OSError("not yet")
        self.held[wish.name] = wish.value

    def delete(self, txn, revision, wish):
        del self.held[wish.name]

    def prune(self, txn, objects):
        wanted = {wish.name for wish in objects}
        self.held = {name: value for name, value in self.held.items() if name in wanted}


async def main():
    db, target = DB("alone"), Target()
    wishes = new_table(db, "wishes", Index("name", key=lambda wish: wish.name))
    reconciler = Reconciler(
        db,
        wishes,
        target,
        config=Config(retry_backoff_min_s=0.01, retry_backoff_max_s=0.02),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reconciler.run)
        with db.write_txn(wishes) as wtxn:
            for number, name in enumerate(("rich", "poor", "gone")):
                wishes.insert(wtxn, Wish(name, number, pending()))
        await reconciler.wait_until_reconciled(wishes.revision(db.read_txn()), settled=True)
        with db.write_txn(wishes) as wtxn:
            wishes.delete(wtxn, wishes.get(wtxn, "gone"))
        await reconciler.wait_until_reconciled(wishes.revision(db.read_txn()), settled=True)
        tasks.cancel_scope.cancel()
    kinds = {wish.name: wish.status.kind for wish in wishes.all(db.read_txn())}
    assert kinds == {"rich": StatusKind.DONE, "poor": StatusKind.DONE}, kinds
    assert target.held == {"rich": 0, "poor": 1}, target.held
    assert target.attempts.count("poor") == 3, target.attempts


anyio.run(main)
print("done", reconcilers.__file__)
'''


def engine_modules() -> list[str]:
    """As the import contract of pyproject.toml names them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (modules,) = (
        modules
        for contract in contracts["contracts"]
        if "reconcilers.reconciler" in (modules := contract.get("source_modules", ()))
    )
    return [name.removeprefix("reconcilers.") for name in modules]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with nothing but the two and the libraries that they need."""
    shutil.copytree(ROOT / "statedb", tmp_path / "statedb")
    for shared in ROOT.glob("*__mypyc*.so"):  # where statedb is compiled
        shutil.copy(shared, tmp_path)
    (tmp_path / "reconcilers").mkdir()
    for module in ("__init__", *engine_modules()):
        shutil.copy(ROOT / "reconcilers" / f"{module}.py", tmp_path / "reconcilers")
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        assert spec and spec.origin
        found = Path(spec.origin)
        found = found.parent if found.name == "__init__.py" else found
        (tmp_path / found.name).symlink_to(found)
    return tmp_path


def test_a_program_needs_nothing_else_of_the_project(installed: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(installed)
    environment.pop("CILIA_COMPILED", None)  # this copy has what a wheel carries, or sources
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", PROGRAM],  # -S: no site-packages
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"done {installed / 'reconcilers' / '__init__.py'}\n"

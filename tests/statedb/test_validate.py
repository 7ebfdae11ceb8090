# SPDX-License-Identifier: Apache-2.0
"""The checks of each commit find what is broken on purpose, and run when they are asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import statedb
from statedb import DB, Index, RWTable, new_table
from statedb._store import Store
from statedb.errors import InvariantBroken


def miscount(store: Store) -> None:
    store.count += 1


def lose_an_entry(store: Store) -> None:
    store.secondaries[0].entries.clear()


def swap_revisions(store: Store) -> None:
    store.tail[0].rev, store.tail[1].rev = store.tail[1].rev, store.tail[0].rev


def take_a_key_twice(store: Store) -> None:
    entries = store.secondaries[1].entries
    row = store.rows["a"]
    row.obj = ("a", "x", "unique b")
    entries["unique b"] = {"a": None, "b": None}


def rename(store: Store) -> None:
    store.rows["z"] = store.rows.pop("a")


def bury_unseen(store: Store) -> None:
    store.rows["a"].dead = True


def lengthen_the_log(store: Store) -> None:
    store.log_len += 1


@pytest.fixture
def db() -> DB:
    db = DB("test")
    db.validating = True
    return db


@pytest.fixture
def table(db: DB) -> RWTable[tuple[str, str, str]]:
    made: RWTable[tuple[str, str, str]] = new_table(
        db,
        "rows",
        Index("name", key=lambda row: row[0]),
        Index("kind", key=lambda row: row[1], unique=False),
        Index("other", key=lambda row: row[2]),
    )
    with db.write_txn(made) as wtxn:
        made.insert_many(wtxn, [(name, "x", f"unique {name}") for name in "abc"])
    return made


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (miscount, "number of objects is miscounted"),
        (lose_an_entry, "index entry is missing"),
        (swap_revisions, "not in revision order"),
        (take_a_key_twice, "taken twice"),
        (rename, "under another key"),
        (bury_unseen, "not in the graveyard"),
        (lengthen_the_log, "length of the log"),
    ],
)
def test_damage_is_found_at_the_next_commit(
    db: DB, table: RWTable[tuple[str, str, str]], damage: Callable[[Store], None], says: str
) -> None:
    with db.write_txn(table) as wtxn:
        table.insert(wtxn, ("d", "x", "unique d"))
    wtxn = db.write_txn(table)
    table.insert(wtxn, ("e", "x", "unique e"))
    damage(table._store)
    with pytest.raises(InvariantBroken, match=says):
        wtxn.commit()


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False)])
def test_checks_are_switched_by_the_environment(value: str, on: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import statedb; print(statedb.DB().validating)"],
        cwd=Path(statedb.__file__).parents[1],
        env={**os.environ, "STATEDB_VALIDATE": value},
        capture_output=True,
        text=True,
        check=True,
        timeout=15,
    )
    assert done.stdout == f"{on}\n"

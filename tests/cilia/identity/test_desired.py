# SPDX-License-Identifier: Apache-2.0
"""The number that an owner takes, and what it asks for: the choice, row by row."""

from __future__ import annotations

import pytest

from cilia.identity.desired import Claim, DesiredIdentities, choose
from statedb import DB
from statedb.status import done, set_status
from tables.identity.desired_identities import new_desired_identities_table
from tables.identity.identities import Identity, new_identities_table

WEB, DB_ = ("k8s:app=web",), ("k8s:app=db",)
# One set whose text is that of another one.
JOINED, PARTS = ("a b",), ("a", "b")
NONE: Claim = ((), 0)
MARKED = Identity(300, WEB, 1.0, is_marked=True)


@pytest.mark.parametrize(
    ("there", "labels", "in_force", "chosen", "claims"),
    [
        ([], WEB, NONE, (WEB, 0), [(WEB, 0)]),
        ([Identity(300, WEB)], WEB, NONE, (WEB, 300), [(WEB, 300)]),
        ([Identity(300, WEB)], WEB, (WEB, 300), (WEB, 300), [(WEB, 300)]),
        # Of several the oldest, then the lowest; but what is in force stays.
        ([Identity(300, WEB, 2.0), Identity(400, WEB, 1.0)], WEB, NONE, (WEB, 400), [(WEB, 400)]),
        ([Identity(400, WEB, 1.0), Identity(300, WEB, 1.0)], WEB, NONE, (WEB, 300), [(WEB, 300)]),
        (
            [Identity(300, WEB, 2.0), Identity(400, WEB, 1.0)],
            WEB,
            (WEB, 300),
            (WEB, 300),
            [(WEB, 300)],
        ),
        # One that is to be deleted is not taken, and not given up.
        ([MARKED], WEB, NONE, (WEB, 0), [(WEB, 0)]),
        ([MARKED, Identity(400, WEB, 2.0)], WEB, NONE, (WEB, 400), [(WEB, 400)]),
        ([MARKED], WEB, (WEB, 300), (WEB, 300), [(WEB, 300)]),
        # Labels that changed: the old number stays in force until there is another one.
        ([Identity(300, WEB)], DB_, (WEB, 300), (WEB, 300), [(DB_, 0), (WEB, 300)]),
        ([Identity(300, WEB), Identity(400, DB_)], DB_, (WEB, 300), (DB_, 400), [(DB_, 400)]),
        # Somebody deleted the object.
        ([], WEB, (WEB, 300), (WEB, 300), [(WEB, 300)]),
        ([], DB_, (WEB, 300), (WEB, 300), [(DB_, 0), (WEB, 300)]),
        # ... and another one took the number.
        ([Identity(300, DB_)], WEB, (WEB, 300), (DB_, 300), [(WEB, 0), (DB_, 300)]),
        # A start that knows the number alone: from the kernel.
        ([Identity(300, WEB)], WEB, ((), 300), (WEB, 300), [(WEB, 300)]),
        ([Identity(300, WEB)], (), ((), 300), (WEB, 300), [(WEB, 300)]),
        ([Identity(300, WEB)], DB_, ((), 300), (WEB, 300), [(DB_, 0), (WEB, 300)]),
        ([], WEB, ((), 300), ((), 300), [(WEB, 0), ((), 300)]),
        ([], (), ((), 300), ((), 300), [((), 300)]),
        ([], (), NONE, NONE, []),
        # What is no number of a cluster stays until there is one.
        ([], WEB, ((), 4), ((), 4), [(WEB, 0)]),
        ([], WEB, ((), 70_000), ((), 70_000), [(WEB, 0)]),
        ([Identity(300, WEB)], WEB, ((), 4), (WEB, 300), [(WEB, 300)]),
        ([Identity(300, JOINED)], PARTS, NONE, (PARTS, 0), [(PARTS, 0)]),
    ],
)
def test_a_number_is_chosen(
    there: list[Identity],
    labels: tuple[str, ...],
    in_force: Claim,
    chosen: Claim,
    claims: list[Claim],
) -> None:
    db = DB()
    table = new_identities_table(db)
    with db.write_txn(table) as wtxn:
        table.insert_many(wtxn, there)
    found = choose(table, db.read_txn(), labels, in_force, adopts=False)
    assert found == (chosen, claims)


def test_a_number_of_unknown_labels_is_adopted_where_nobody_else_has_it() -> None:
    db = DB()
    table = new_identities_table(db)
    found = choose(table, db.read_txn(), WEB, ((), 300), adopts=True)
    assert found == ((WEB, 300), [(WEB, 300)])


@pytest.mark.parametrize("adopts", [True, False])
def test_a_number_is_nobodys_before_all_is_read(adopts: bool) -> None:
    """Its object may have other labels, which the pod had before."""
    db = DB()
    table = new_identities_table(db)
    with db.write_txn(table) as wtxn:
        table.register_initializer(wtxn, "objects")
    found = choose(table, db.read_txn(), WEB, ((), 300), adopts=adopts)
    assert found == (((), 300), [((), 300)])
    found = choose(table, db.read_txn(), WEB, (WEB, 300), adopts=adopts)
    assert found == ((WEB, 300), [(WEB, 300)])


def test_rows_that_stay_keep_their_status() -> None:
    db = DB()
    table, identities = new_desired_identities_table(db), new_identities_table(db)
    ours = DesiredIdentities(table, identities, "ours", adopts=False)
    others = DesiredIdentities(table, identities, "others", adopts=False)
    with db.write_txn(table) as wtxn:
        others.replace(wtxn, {(WEB, 0)})
        ours.replace(wtxn, {(WEB, 0), (WEB, 300)})
        row = table.get(wtxn, ("ours", "k8s:app=web", 300))
        assert row is not None
        table.insert(wtxn, set_status(row, done()))
        kept = table.get_row(wtxn, ("ours", "k8s:app=web", 300))
        ours.replace(wtxn, {(WEB, 300), (DB_, 0)})
        assert table.get_row(wtxn, ("ours", "k8s:app=web", 300)) == kept
        rows = {(row.owner, row.labels, row.number) for row in table.all(wtxn)}
    assert rows == {("others", WEB, 0), ("ours", WEB, 300), ("ours", DB_, 0)}

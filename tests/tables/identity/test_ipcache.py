# SPDX-License-Identifier: Apache-2.0
"""Prefixes as keys: exact, and by what covers an address."""

from __future__ import annotations

import pytest

from statedb import DB, ReadTxn
from tables.identity.ipcache import (
    COVERING,
    PREFIX,
    Claim,
    IPCacheEntry,
    new_ipcache_table,
    parse_key,
    prefix_text,
)
from tables.sources import Source

TEXTS = (
    *("::/0", "0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.5/32", "fd00::/64"),
    *("fd00::5/128", "10.0.0.0/8@3", "10.0.0.5/32@3"),
)


@pytest.fixture
def db() -> DB:
    made = DB()
    table = new_ipcache_table(made)
    with made.write_txn(table) as wtxn:
        for text in TEXTS:
            cluster_id, prefix = parse_key(text)
            claim = Claim(source=Source.LOCAL, owner="x", identity=300)
            entry = IPCacheEntry(prefix=prefix, cluster_id=cluster_id, claims=(claim,))
            table.insert(wtxn, entry)
    return made


@pytest.mark.parametrize(
    ("text", "longest", "number"),
    [
        ("10.0.0.5", "10.0.0.5/32", 4),
        ("10.0.0.6", "10.0.0.0/24", 3),
        ("10.9.9.9", "10.0.0.0/8", 2),
        ("10.0.0.0/16", "10.0.0.0/8", 2),
        ("192.0.2.1", "0.0.0.0/0", 1),
        ("fd00::5", "fd00::5/128", 3),
        ("fd00::6", "fd00::/64", 2),
        ("10.0.0.5@3", "10.0.0.5/32@3", 2),
        ("10.0.0.6@3", "10.0.0.0/8@3", 1),
    ],
)
def test_an_address_is_covered_within_its_family_and_cluster(
    db: DB, text: str, longest: str, number: int
) -> None:
    def look(txn: ReadTxn) -> list[IPCacheEntry]:
        return list(db.table("ipcache").list(txn, parse_key(text), COVERING))

    found = db.look(look)
    assert prefix_text(found[0]) == longest
    assert len(found) == number


def test_a_cluster_that_is_not_known_has_nothing(db: DB) -> None:
    key = parse_key("10.0.0.5@4")
    assert db.look(lambda txn: db.table("ipcache").get(txn, key, COVERING)) is None


def test_what_is_inside_a_prefix_is_found(db: DB) -> None:
    def look(txn: ReadTxn) -> list[str]:
        rows = db.table("ipcache").prefix(txn, parse_key("10.0.0.0/16"), COVERING)
        return [prefix_text(row) for row in rows]

    assert db.look(look) == ["10.0.0.0/24", "10.0.0.5/32"]


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0/33", "10.0.0.1@", "10.0.0.1@-1", "x@1", "::1@65536"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        PREFIX.parse_key(text)

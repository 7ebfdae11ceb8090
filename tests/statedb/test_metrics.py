# SPDX-License-Identifier: Apache-2.0
"""The metrics of a database, as a scrape reads them."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from statedb import DB, Index, new_table
from statedb.metrics import observe
from tests.statedb_application import Book, Library, Shelf


class Scrape:
    """The samples of one scrape, by name and labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = generate_latest(registry).decode()
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset({"db": "library", **labels}.items())))


@pytest.fixture
def library() -> Library:
    return Library([])


@pytest.fixture
def registry(library: Library) -> CollectorRegistry:
    registry = CollectorRegistry()
    observe(library.db, registry, "cilia_statedb")
    return registry


def test_tables_are_measured_when_they_are_scraped(
    library: Library, registry: CollectorRegistry
) -> None:
    books = library.books
    with library.db.write_txn(books) as wtxn:
        changes = books.changes(wtxn)
        books.insert(wtxn, Book("Emma", 1815))
        books.insert(wtxn, Book("Walden", 1854))
        books.register_initializer(wtxn, "reflector")
    with library.db.write_txn(books) as wtxn:
        books.delete(wtxn, Book("Emma", 1815))
    scrape = Scrape(registry)
    expected = {
        "objects": 1,
        "revision": 3,
        "deleted_objects": 1,
        "trackers": 1,
        "pending_initializers": 1,
    }
    for name, value in expected.items():
        assert scrape.value(f"cilia_statedb_table_{name}", table="books") == value, name
        assert scrape.value(f"cilia_statedb_table_{name}", table="shelves") == 0, name
    used = scrape.value("cilia_statedb_table_bytes", table="books")
    assert used is not None
    assert used > 100
    assert scrape.value("cilia_statedb_table_budget_bytes", table="books") is None
    changes.close()


def test_budget_is_shown_when_there_is_one() -> None:
    db, registry = DB("library"), CollectorRegistry()
    key = Index("number", lambda shelf: shelf.number)
    new_table(db, "shelves", key, row_type=Shelf, budget_bytes=1 << 20)
    observe(db, registry)
    assert Scrape(registry).value("statedb_table_budget_bytes", table="shelves") == 1 << 20


def test_transactions_and_commits_are_counted(
    library: Library, registry: CollectorRegistry
) -> None:
    with library.db.write_txn(library.books) as wtxn:
        library.books.insert(wtxn, Book("Emma", 1815))
    with library.db.write_txn(library.shelves, library.books) as wtxn:
        library.shelves.insert(wtxn, Shelf(1, "x"))
    library.db.write_txn(library.books).abort()
    scrape = Scrape(registry)
    duration = "cilia_statedb_write_txn_duration_seconds"
    assert scrape.value(f"{duration}_count", tables="books") == 2
    assert scrape.value(f"{duration}_count", tables="books+shelves") == 1
    assert scrape.value("cilia_statedb_commits_total", table="books") == 1
    assert scrape.value("cilia_statedb_commits_total", table="shelves") == 1
    total = scrape.value(f"{duration}_sum", tables="books")
    assert total is not None
    assert 0 < total < 1
    assert scrape.value("cilia_statedb_write_txn_lock_wait_seconds_sum", tables="books") == 0


def test_waiting_for_a_lock_is_measured_apart_from_holding_it(
    library: Library, registry: CollectorRegistry
) -> None:
    wtxn = library.db.write_txn(library.books)

    def second() -> None:
        library.db.write_txn(library.books).commit()

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.1)
    wtxn.commit()
    thread.join()
    scrape = Scrape(registry)
    waited = scrape.value("cilia_statedb_write_txn_lock_wait_seconds_sum", tables="books")
    held = scrape.value("cilia_statedb_write_txn_duration_seconds_sum", tables="books")
    assert waited is not None
    assert held is not None
    assert waited > 0.05  # by the second
    assert 0.05 < held < waited + 0.09  # by the first; the second's wait is not part of its holding

# SPDX-License-Identifier: Apache-2.0
"""Maps of tables behave alike in the kernel and faked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bpf.errors import BatchError, MapFull
from bpf.maps.fake import FakeTableMap
from bpf.maps.tables import BATCH, PART_BYTES, TableMap

ROOM = BATCH + 10


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.root)])
def tables(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeTableMap("tables", 4, ROOM)
        return
    opened = TableMap.create("tables", ROOM)
    yield opened
    opened.close()


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def table(start: int, parts: int) -> bytes:
    return b"".join(key(start + i) for i in range(parts * PART_BYTES // 4))


def test_tables_of_different_lengths_are_kept_and_replaced(tables: Any) -> None:
    tables.update(key(1), table(100, 5))
    tables.update(key(2), table(200, 500))
    assert tables.lookup(key(2)) == table(200, 500)
    tables.update(key(2), table(300, 7))
    assert dict(tables.items()) == {key(1): table(100, 5), key(2): table(300, 7)}
    assert tables.count() == 2
    tables.delete(key(1))
    assert (tables.lookup(key(1)), tables.lookup(key(2))) == (None, table(300, 7))
    tables.clear()
    assert list(tables.items()) == []


def test_batch_that_does_not_fit_says_how_much_did(tables: Any) -> None:
    keys = [key(n) for n in range(ROOM + 5)]
    with pytest.raises(BatchError) as caught:
        tables.update_batch(keys, [table(n, 3) for n in range(ROOM + 5)])
    assert caught.value.done == ROOM
    assert isinstance(caught.value.cause, MapFull)
    assert len(dict(tables.items())) == ROOM
    tables.delete_batch(keys)
    assert list(tables.items()) == []


def test_what_is_no_table_is_refused(tables: Any) -> None:
    with pytest.raises(ValueError, match="key"):
        tables.update(b"\0", table(1, 1))
    for value in (b"", table(1, 1)[:-4]):
        with pytest.raises(ValueError, match="no whole number"):
            tables.update(key(1), value)

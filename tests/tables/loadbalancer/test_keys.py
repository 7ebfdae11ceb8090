# SPDX-License-Identifier: Apache-2.0
"""Services are found by text that is only the beginning of their name."""

from __future__ import annotations

from typing import Any

import pytest

from statedb import DB, Index, RWTable
from tables.addressing import ServiceName
from tables.loadbalancer import backends, frontends, services
from tables.loadbalancer.services import Service, new_services_table
from tables.sources import Source


@pytest.mark.parametrize(
    "index", [services.NAME, frontends.SERVICE, frontends.REDIRECT, backends.SERVICE]
)
@pytest.mark.parametrize("text", ["test/echo", "east/test/echo", "test/", "te", ""])
def test_any_text_is_a_key(index: Index, text: str) -> None:
    assert index.parse is not None
    assert index.parse(text) == text


def test_services_of_a_namespace_are_found_by_prefix() -> None:
    table: RWTable[Any] = new_services_table(db := DB())
    with db.write_txn(table) as wtxn:
        for namespace, name in [("test", "a"), ("test", "b"), ("testing", "c"), ("other", "d")]:
            table.insert(wtxn, Service(ServiceName.of(namespace, name), Source.K8S))
    found = table.prefix(db.read_txn(), "test/")
    assert [svc.name for svc in found] == ["test/a", "test/b"]

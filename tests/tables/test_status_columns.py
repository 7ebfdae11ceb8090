# SPDX-License-Identifier: Apache-2.0
"""Every table with a status shows it in the same three columns."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

import msgspec
import pytest

import tables
from statedb.status import error, get_status, refused, set_status
from tables.node.sysctl import SysctlSetting
from tables.status_columns import STATUS_COLUMNS


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(tables.__path__, "tables.")
    return [importlib.import_module(module.name) for module in found]


def rows_with_status(module: ModuleType) -> list[type[Any]]:
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == module.__name__
        and "status" in kind.__struct_fields__
    ]


@pytest.mark.parametrize(
    "module", [m for m in modules() if rows_with_status(m)], ids=lambda module: module.__name__
)
def test_a_table_with_a_status_shows_it(module: ModuleType) -> None:
    assert all(column in module.COLUMNS for column in STATUS_COLUMNS)


def test_status_is_shown_with_its_error() -> None:
    row = set_status(SysctlSetting("net.ipv4.ip_forward", "1"), refused("read-only"))
    kind, _, text = (column.cell(row) for column in STATUS_COLUMNS)
    assert (kind, text) == ("Refused", "read-only")


def test_another_status_leaves_the_rest_of_a_row_alone() -> None:
    row = SysctlSetting("net.ipv4.ip_forward", "1")
    failed = error("gone")
    changed = set_status(row, failed)
    assert get_status(changed) is failed
    assert set_status(changed, row.status) == row

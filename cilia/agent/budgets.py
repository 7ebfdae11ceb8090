# SPDX-License-Identifier: Apache-2.0
"""The option `--statedb-budget`: how many bytes each table is meant to stay within.

`256,frontends=1024` is 256 MiB for every table but `frontends`. A budget refuses nothing: a table
over it is marked in `cilia status`, and the metrics have both figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the options are read without loading the tables
    from statedb import DB

MIB = 1 << 20
OTHERS = ""


def parse_budgets(text: str) -> dict[str, int]:
    """Bytes by table name; the entry OTHERS is for every table that is not named.

    Raises:
        ValueError: a part is neither MIB nor TABLE=MIB, with MIB a positive whole number, or a
        table is there twice.

    >>> parse_budgets("256,frontends=1024")
    {'': 268435456, 'frontends': 1073741824}
    """
    budgets: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, size = part.rpartition("=")
        if not size.isdecimal() or not int(size) or (equals and not name):
            raise ValueError(f"{part!r} is neither MIB nor TABLE=MIB")
        if name in budgets:
            raise ValueError(f"{name or 'the budget of all others'} is there twice")
        budgets[name] = int(size) * MIB
    return budgets


def give_budgets(db: DB, budgets: Mapping[str, int]) -> list[str]:
    """Give each table of the database its budget; returns the names of tables that are not there.

    Call it when all tables are registered.
    """
    tables = {table.name: table for table in db.tables()}
    for name, table in tables.items():
        table.budget_bytes = budgets.get(name, budgets.get(OTHERS))
    return sorted(budgets.keys() - tables.keys() - {OTHERS})

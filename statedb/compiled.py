# SPDX-License-Identifier: Apache-2.0
"""Modules of this package that a build may compile with mypyc: what each query and write goes
through. Those with coroutines, weak references or msgspec structs stay interpreted.
"""

MODULES = (
    "statedb/_row.py",
    "statedb/_tree.py",
    "statedb/_opened.py",
    "statedb/_watchers.py",
    "statedb/_views.py",
    "statedb/_secondary.py",
    "statedb/_store.py",
    "statedb/index.py",
    "statedb/lpm.py",
    "statedb/graveyard.py",
    "statedb/_commits.py",
    "statedb/txn.py",
    "statedb/changes.py",
    "statedb/table.py",
    "statedb/db.py",
)

# SPDX-License-Identifier: Apache-2.0
"""Versioned in-memory tables: snapshots without locks, transactions over several tables, watch
channels.

What belongs here: tables of immutable objects, their indexes, transactions, change iterators, and
how a table is shown to the outside. What does not: anything about networking or Kubernetes; this
package imports nothing of `cilia`, `tables`, `bpf` or `reconcilers`. Start with README.md, then
`table.py` (what users call) and `_store.py` (how it works).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from statedb.errors import (
    BadKey,
    DuplicateKey,
    ForeignTransaction,
    InitializerExists,
    InstanceMismatch,
    InvariantBroken,
    IteratorClosed,
    NoParser,
    NotSupported,
    QueryError,
    RegistrationError,
    RevisionGone,
    StateDBError,
    TableExists,
    TableNotLocked,
    TransactionClosed,
    TransactionError,
    TransactionForgotten,
    TransactionOpen,
    UnknownIndex,
    UnknownTable,
)

if TYPE_CHECKING:
    from statedb._change import Change
    from statedb._commits import Metrics, ReadTxn
    from statedb.changes import ChangeIterator
    from statedb.db import DB, new_table
    from statedb.derivation import Action, Derivation, derive, observe
    from statedb.index import Index
    from statedb.initializer import wait_filled, wait_initialized
    from statedb.lpm import LpmIndex, LpmKey, bits_key, int_key, ip_key
    from statedb.persistent import Map, Set
    from statedb.sizing import Usage
    from statedb.status import Status, StatusKind
    from statedb.table import Column, Initializer, RWTable, Table
    from statedb.txn import WriteTxn
    from statedb.watch import Channel, WatchSet, closed_channel, wait_any

__all__ = [
    "DB",
    "Action",
    "BadKey",
    "Change",
    "ChangeIterator",
    "Channel",
    "Column",
    "Derivation",
    "DuplicateKey",
    "ForeignTransaction",
    "Index",
    "Initializer",
    "InitializerExists",
    "InstanceMismatch",
    "InvariantBroken",
    "IteratorClosed",
    "LpmIndex",
    "LpmKey",
    "Map",
    "Metrics",
    "NoParser",
    "NotSupported",
    "QueryError",
    "RWTable",
    "ReadTxn",
    "RegistrationError",
    "RevisionGone",
    "Set",
    "StateDBError",
    "Status",
    "StatusKind",
    "Table",
    "TableExists",
    "TableNotLocked",
    "TransactionClosed",
    "TransactionError",
    "TransactionForgotten",
    "TransactionOpen",
    "UnknownIndex",
    "UnknownTable",
    "Usage",
    "WatchSet",
    "WriteTxn",
    "bits_key",
    "closed_channel",
    "derive",
    "int_key",
    "ip_key",
    "new_table",
    "observe",
    "wait_any",
    "wait_filled",
    "wait_initialized",
]

# A module is loaded when the first of its names is used: commands that show what an agent told
# escape text, and need no tables.
_NAMES: Final = {
    "statedb._change": "Change",
    "statedb._commits": "Metrics ReadTxn",
    "statedb.changes": "ChangeIterator",
    "statedb.db": "DB new_table",
    "statedb.derivation": "Action Derivation derive observe",
    "statedb.index": "Index",
    "statedb.initializer": "wait_filled wait_initialized",
    "statedb.lpm": "LpmIndex LpmKey bits_key int_key ip_key",
    "statedb.persistent": "Map Set",
    "statedb.sizing": "Usage",
    "statedb.status": "Status StatusKind",
    "statedb.table": "Column Initializer RWTable Table",
    "statedb.txn": "WriteTxn",
    "statedb.watch": "Channel WatchSet closed_channel wait_any",
}
_HOMES: Final = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Load a public name and keep it. Raises: AttributeError."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found

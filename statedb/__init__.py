# SPDX-License-Identifier: Apache-2.0
"""Versioned in-memory tables: snapshots without locks, transactions over several tables, watch
channels.

What belongs here: tables of immutable objects, their indexes, transactions, change iterators, and
how a table is shown to the outside. What does not: anything about networking or Kubernetes; this
package imports nothing of `cilia`, `tables`, `bpf` or `reconcilers`. Start with README.md, then
`table.py` (what users call) and `_store.py` (how it works).
"""

from statedb.compiled import STATEDB, prefer

prefer(STATEDB, __name__, __path__)

# ruff: noqa: E402  what is imported from here on may be compiled
from statedb._change import Change
from statedb.changes import ChangeIterator
from statedb.db import DB, Metrics
from statedb.derive import Action, Derivation, derive, observe
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
from statedb.index import Index
from statedb.initializer import wait_initialized
from statedb.lpm import LpmIndex, LpmKey, bits_key, int_key, ip_key
from statedb.persistent import Map, Set
from statedb.sizing import Usage
from statedb.status import Status, StatusKind
from statedb.table import Column, RWTable, Table, new_table
from statedb.txn import ReadTxn, WriteTxn
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
    "wait_initialized",
]

# SPDX-License-Identifier: Apache-2.0
"""Queries given as text: table, index, key and revision, as scripts, HTTP and the CLI ask.

A text key is read by the index's parser. Objects come in the order of the index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from statedb.errors import BadKey, NotSupported

if TYPE_CHECKING:
    from statedb._commits import ReadTxn
    from statedb.db import DB
    from statedb.table import RWTable, Table

# Of a revision; Python converts no more than some thousand.
MOST_DIGITS = 20
KINDS = ("all", "get", "list", "prefix", "lower_bound")


class At(msgspec.Struct, frozen=True):
    """Which state a query reads: a revision of its table, 0 for the newest; and of which instance.

    >>> At.parse("5f3a:17")
    At(revision=17, instance='5f3a')
    >>> At.parse("17").revision
    17
    """

    revision: int = 0
    instance: str = ""

    @classmethod
    def parse(cls, text: str) -> At:
        """Reads `REVISION` or `INSTANCE:REVISION`; an empty text is the newest state.

        Raises:
            BadKey: the text is neither.
        """
        if not text:
            return cls()
        instance, _, revision = text.rpartition(":")
        if not (revision.isascii() and revision.isdigit()) or len(revision) > MOST_DIGITS:
            raise BadKey(f"{text!r} is no revision: it is REVISION or INSTANCE:REVISION")
        return cls(int(revision), instance)

    def txn(self, db: DB, table: Table[Any]) -> ReadTxn:
        """The snapshot of that state.

        Raises:
            RevisionGone: it is outside the history that the database keeps.
            InstanceMismatch: it is of another instance.
        """
        if not self.revision:
            return db.read_txn()
        return db.read_txn_at(table, self.revision, self.instance)


def writable(db: DB, name: str) -> RWTable[Any]:
    """The table of this name, to write: what is registered is always the writable one.

    Raises:
        UnknownTable: there is none.
    """
    return cast("RWTable[Any]", db.table(name))


def query(
    table: Table[Any], txn: ReadTxn, kind: str, key: str = "", index: str = ""
) -> Iterable[Any]:
    """The objects that a query finds; `get` the first of those that `list` finds.

    Raises:
        UnknownIndex, NoParser, BadKey, NotSupported: as the index says.
    """
    if kind not in KINDS:
        raise NotSupported(f"no query {kind!r}: it is one of {', '.join(KINDS)}")
    if kind == "all":
        return table.all(txn)
    chosen = table.index(index) if index else table.primary
    asked = chosen.parse_key(key)
    match kind:
        case "get":
            found = table.get(txn, asked, chosen)
            return () if found is None else (found,)
        case "list":
            return table.list(txn, asked, chosen)
        case "prefix":
            return table.prefix(txn, asked, chosen)
    return table.lower_bound(txn, asked, chosen)

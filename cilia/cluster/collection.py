# SPDX-License-Identifier: Apache-2.0
"""What collectors of objects have in common: they do nothing while something is not read whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from statedb import ReadTxn, Table
from tables.cluster.k8s_watches import K8sWatch
from tables.problems import Problem

__all__ = ["Collected", "Unread", "unread_of"]

#: Returns the names of what is not read whole now.
Unread = Callable[[ReadTxn], list[str]]

ABSENT = "absent"


class Collected(NamedTuple):
    """What one look at all objects came to."""

    # Names of what was not read whole: then nothing was done.
    unread: Sequence[str] = ()
    # Objects by what became of them.
    outcomes: Mapping[str, int] = MappingProxyType({})


def unread_of(
    tables: Sequence[Table[Any]],
    watches: Table[K8sWatch],
    problems: Table[Problem],
    kinds: Collection[str],
) -> Unread:
    """A table counts once its first list is whole, and while its source is followed.

    A file with a problem is not read whole, unless it has objects of other `kinds`. A kind that the
    API server does not have is not read either: whoever would write its objects cannot.
    """

    def unread(txn: ReadTxn) -> list[str]:
        found = [table.name for table in (*tables, problems) if not table.initialized(txn)]
        rows = watches.all(txn)
        found += [row.resource for row in rows if not row.well or row.state == ABSENT]
        files = {row.file for row in problems.all(txn) if row.kind in ("", *kinds)}
        return found + sorted(filter(None, files))

    return unread

# SPDX-License-Identifier: Apache-2.0
"""``problems``: input that was refused, and why; a row stays for as long as the input is wrong.

Rows come in sets: an *origin* (one file, one Service in conflict) replaces all its rows at once,
and an empty set says that all is well again. So nobody has to remember what was complained of
before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, WriteTxn, new_table
from tables.times import age, rfc3339

TABLE_NAME: Final = "problems"


class Problem(msgspec.Struct, frozen=True, gc=False):
    # Who speaks: "manifests:web.yaml", "services:test/echo".
    origin: str
    message: str
    # Where it stands, as far as it is known. Documents of a file count from 1; 0: not of one
    # document.
    file: str = ""
    document: int = 0
    kind: str = ""
    namespace: str = ""
    name: str = ""
    # Path to the field: "spec.ports[0].port".
    field: str = ""
    # Seconds since the epoch; kept from the first time that exactly this was said.
    since: float = 0.0

    @property
    def object(self) -> str:
        """``Service test/echo``, or what is known of it."""
        return f"{self.kind} {'/'.join(filter(None, (self.namespace, self.name)))}".strip()

    def __str__(self) -> str:
        """One line for a log or a status page."""
        where = self.file + (f" document {self.document}" if self.document else "")
        return ": ".join(filter(None, (where, self.object, self.field, self.message)))


def problem_key(p: Problem) -> tuple[str, str, int, str, str, str, str, str]:
    return (p.origin, p.file, p.document, p.kind, p.namespace, p.name, p.field, p.message)


def _origin(p: Problem) -> str:
    return p.origin


def replace_problems(
    table: RWTable[Problem], wtxn: WriteTxn, origin: str, problems: Iterable[Problem], now: float
) -> None:
    """Make ``problems`` the whole of what an origin has to say.

    Args:
        now: seconds since the epoch, the ``since`` of the new ones.
    """
    old = {problem_key(p): p for p in table.list(wtxn, origin, ORIGIN)}
    for problem in problems:
        row = msgspec.structs.replace(problem, origin=origin, since=now)
        if old.pop(problem_key(row), None) is None:
            table.insert(wtxn, row)
    for gone in old.values():
        table.delete(wtxn, gone)


def to_json(p: Problem) -> dict[str, Any]:
    return {
        "Origin": p.origin,
        "File": p.file,
        "Document": p.document,
        "Kind": p.kind,
        "Namespace": p.namespace,
        "Name": p.name,
        "Field": p.field,
        "Message": p.message,
        "Since": rfc3339(p.since),
    }


KEY: Final = Index("key", key=problem_key)
ORIGIN: Final = Index("origin", key=_origin, unique=False, parse=str)

COLUMNS: Final = (
    Column("Origin", lambda p: p.origin),
    Column("File", lambda p: p.file),
    Column("Document", lambda p: str(p.document or "")),
    Column("Object", lambda p: p.object),
    Column("Field", lambda p: p.field),
    Column("Message", lambda p: p.message),
    Column("Since", lambda p: age(p.since)),
)


def new_problems_table(db: DB) -> RWTable[Problem]:
    """Registers ``problems`` with the database."""
    return new_table(
        db, TABLE_NAME, KEY, ORIGIN, columns=COLUMNS, row_type=Problem, to_json=to_json
    )

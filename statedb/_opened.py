# SPDX-License-Identifier: Apache-2.0
"""Who opened a write transaction, and where: for the errors that name it.

Noting it costs a tuple; the text, and the line of the place in the code, are made when they are
needed.
"""

from __future__ import annotations

import threading
from types import CodeType
from typing import Any, TypeAlias

from statedb.errors import TransactionOpen

Opened: TypeAlias = "tuple[list[Any], CodeType, int, int]"
"""The tables, the caller's code and the offset in it, the thread."""


def describe(opened: Opened) -> str:
    """Return a text with the tables and the place."""
    tables, code, offset, _ = opened
    line: Any = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= offset < end and number is not None:
            line = number
    names = ", ".join([table.name for table in tables])
    return f"write transaction on {names}, opened at {code.co_filename}:{line}"


def refuse_reopen(opened: Opened | None) -> None:
    """Raise when this thread itself holds the table that it is about to wait for."""
    if opened is not None and opened[3] == threading.get_ident():
        raise TransactionOpen(f"{describe(opened)} is still open in this thread")

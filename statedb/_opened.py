# SPDX-License-Identifier: Apache-2.0
"""Who opened a write transaction: for the errors that name it."""

from __future__ import annotations

import sys
import threading
from types import CodeType
from typing import Any, Final

from statedb._row import COMPILED
from statedb.errors import TransactionOpen

_CALLER: Final = 0 if COMPILED else 3
"""Frames between `Opened` and whoever called `DB.write_txn`: compiled functions have none."""


class Opened:
    """Who opened a write transaction, and where: for the message when it is misused."""

    def __init__(self, names: str) -> None:
        frame = sys._getframe(_CALLER)
        self.names = names
        self.code: CodeType = frame.f_code
        self.at: int = frame.f_lasti
        self.thread: int = threading.get_ident()
        self.lock_wait_s = 0.0

    def __str__(self) -> str:
        line: Any = self.code.co_firstlineno
        for start, end, number in self.code.co_lines():
            if start <= self.at < end and number is not None:
                line = number
        return f"write transaction on {self.names}, opened at {self.code.co_filename}:{line}"


def refuse_reopen(holder: Opened | None) -> None:
    """Raise when this thread itself holds what it is about to wait for."""
    if holder is not None and holder.thread == threading.get_ident():
        raise TransactionOpen(f"{holder} is still open in this thread")

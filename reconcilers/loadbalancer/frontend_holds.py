# SPDX-License-Identifier: Apache-2.0
"""What the operations of frontends ask about inputs that are unread."""

from collections.abc import Iterable
from typing import Protocol

from statedb import Channel, ReadTxn
from tables.loadbalancer.frontends import Frontend


class Holds(Protocol):
    """Says which rows may not be carried out before more of the inputs is read."""

    def unread(self, txn: ReadTxn) -> frozenset[str]:
        """Return the names of inputs that are unread; none: nothing is held back."""
        ...

    def reason(self, unread: frozenset[str], fe: Frontend) -> str:
        """Return why a row has to wait for these; empty if it does not."""
        ...

    def may_lack_services(self, unread: frozenset[str]) -> bool:
        """True if backends of a row, or an owner of its address, may be in what is unread."""
        ...

    def is_given(self, unread: frozenset[str], fe: Frontend) -> bool:
        """True if no Service that is unread can have the row's address."""

    def watch(self, txn: ReadTxn) -> Iterable[Channel]:
        """Return what closes when `unread` may return something else."""
        ...


__all__ = ["Holds"]

# SPDX-License-Identifier: Apache-2.0
"""The statuses of several reconcilers of one table, as one immutable field of the object.

The writer of an object sets `pending_set()`; each reconciler reads and replaces the status of its
own name: `get_status=lambda o: o.statuses.get("fib")` and
`set_status=lambda o, s: replace(o, statuses=o.statuses.set("fib", s))`.
"""

import msgspec

from statedb import Status, StatusKind
from statedb.status import pending


class StatusSet(msgspec.Struct, frozen=True):
    """A name that is not among `statuses` has `initial`: all are pending after a change."""

    initial: Status
    statuses: tuple[tuple[str, Status], ...] = ()

    def get(self, name: str) -> Status:
        for known, status in self.statuses:
            if known == name:
                return status
        return self.initial

    def set(self, name: str, status: Status) -> "StatusSet":
        others = [pair for pair in self.statuses if pair[0] != name]
        return StatusSet(self.initial, tuple(sorted([*others, (name, status)])))

    def pending(self) -> "StatusSet":
        """All pending again, keeping the names, for the writer that changes an object."""
        status = pending()
        return StatusSet(status, tuple((name, status) for name, _ in self.statuses))

    def __str__(self) -> str:
        """`Done: a b, Error: c (text)`; `Pending` alone while no reconciler has answered."""
        if not self.statuses:
            return _title(self.initial.kind)
        groups: dict[StatusKind, list[str]] = {}
        for name, status in self.statuses:
            text = f"{name} ({status.error})" if status.error else name
            groups.setdefault(status.kind, []).append(text)
        return ", ".join(f"{_title(kind)}: {' '.join(names)}" for kind, names in groups.items())


def _title(kind: StatusKind) -> str:
    return kind.value.capitalize()


def pending_set() -> StatusSet:
    """The status field of a new object."""
    return StatusSet(pending())

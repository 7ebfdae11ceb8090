# SPDX-License-Identifier: Apache-2.0
"""The backends of a service by the name of their port, for services of many ports.

Each frontend looks at the backends of the service and takes those of its own port. With a thousand
ports and a hundred endpoints that would be a hundred million looks at each change of a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tables.loadbalancer.backends import Backend

__all__ = ["Candidates"]

# Fewer are looked through faster than they are sorted.
_FEW: Final = 64


class Candidates:
    """What `select_backends` is to choose from, in the order that it wants."""

    __slots__ = ("_by_name", "_rows")

    def __init__(self, rows: Sequence[Backend]) -> None:
        self._rows = rows
        self._by_name: dict[str, list[Backend]] | None = None

    def of(self, port_name: str) -> Sequence[Backend]:
        """All that may answer at a port, and others too if they are few."""
        if len(self._rows) <= _FEW or not port_name:
            return self._rows
        if self._by_name is None:
            self._by_name = {}
            for be in self._rows:
                # One without names answers at every port: "" stands for these.
                for name in be.port_names or ("",):
                    self._by_name.setdefault(name, []).append(be)
        if "" in self._by_name:
            return self._rows
        return self._by_name.get(port_name, ())

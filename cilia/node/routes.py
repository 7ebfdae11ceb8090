# SPDX-License-Identifier: Apache-2.0
"""The writer of `desired-routes`: validates, and decides whose route stands for a destination.

Among the routes to one destination with one metric in one table the lowest administrative distance
is selected; between equals, the owner whose name comes first, so that two runs decide alike.
"""

from __future__ import annotations

import msgspec

from statedb import RWTable, WriteTxn
from statedb.status import pending
from tables.node.desired_routes import (
    TABLE_PREFIX,
    DesiredRoute,
    KernelKey,
    check,
    desired_route_key,
    kernel_key,
)

__all__ = ["DesiredRoutes"]


class DesiredRoutes:
    """All writes of owners go through here, inside the owner's transaction."""

    def __init__(self, table: RWTable[DesiredRoute]) -> None:
        self._table = table

    def upsert(self, wtxn: WriteTxn, route: DesiredRoute) -> None:
        """Adds an owner's route or changes it; nothing is written if it is as it was.

        Raises:
            ValueError: no kernel could take it.
        """
        check(route)
        old = self._table.get(wtxn, desired_route_key(route))
        if old is not None and _as_wanted(old) == _as_wanted(route):
            return
        self._table.insert(wtxn, msgspec.structs.replace(_as_wanted(route), status=pending()))
        self._select(wtxn, kernel_key(route))

    def delete(self, wtxn: WriteTxn, route: DesiredRoute) -> None:
        """Takes an owner's route back; the next one in distance takes its place. Idempotent."""
        old = self._table.get(wtxn, desired_route_key(route))
        if old is not None:
            self._table.delete(wtxn, old)
            self._select(wtxn, kernel_key(route))

    def delete_owner(self, wtxn: WriteTxn, owner: str) -> int:
        """Takes all routes of an owner back; how many they were."""
        routes = list(self._table.prefix(wtxn, (owner,)))
        for route in routes:
            self.delete(wtxn, route)
        return len(routes)

    def _select(self, wtxn: WriteTxn, key: KernelKey) -> None:
        rivals = self._table.list(wtxn, key, TABLE_PREFIX)
        best = min(rivals, key=lambda r: (r.admin_distance, r.owner), default=None)
        for route in rivals:
            selected = route is best
            if route.selected != selected:
                changed = msgspec.structs.replace(route, selected=selected, status=pending())
                self._table.insert(wtxn, changed)


def _as_wanted(route: DesiredRoute) -> DesiredRoute:
    """Only what the owner says, for comparison: without selection, status and indexes."""
    hops = tuple(msgspec.structs.replace(hop, device_index=0) for hop in route.multipath)
    return msgspec.structs.replace(
        route, selected=False, device_index=0, multipath=hops, status=_NEVER
    )


_NEVER = msgspec.structs.replace(pending(), id=0, updated_at=0.0)

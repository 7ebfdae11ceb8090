# SPDX-License-Identifier: Apache-2.0
"""Which waiting services can be given their addresses; pure.

A service waits while another owns an address that it asks for. Owners may be waiting themselves:
two services that exchange addresses wait for each other, and only together can both be served.
"""

from __future__ import annotations

from collections.abc import Iterable

from tables.addressing import L3n4Addr, ServiceName
from tables.frontend_claims import FrontendClaim

Claims = dict[ServiceName, FrontendClaim]


def grantable(claims: Iterable[FrontendClaim]) -> list[FrontendClaim]:
    """The claims that can be granted at once, who waited longest first.

    Each conflict of a chosen claim is with a service that is chosen too and does not ask for the
    address any more. Of two that ask for one address, the one that waits longer is chosen.
    """
    chosen: Claims = {
        claim.service.name: claim for claim in sorted(claims, key=lambda claim: claim.since)
    }
    _drop_blocked(chosen)
    while (loser := _later_rival(chosen)) is not None:
        del chosen[loser]
        _drop_blocked(chosen)
    return list(chosen.values())


def asks_for(claim: FrontendClaim) -> set[L3n4Addr]:
    return {params.address for params in claim.frontends}


def _drop_blocked(chosen: Claims) -> None:
    """Takes out claims whose address stays with its owner, and those that then follow."""
    while blocked := [name for name, claim in chosen.items() if _is_blocked(claim, chosen)]:
        for name in blocked:
            del chosen[name]


def _is_blocked(claim: FrontendClaim, chosen: Claims) -> bool:
    for conflict in claim.conflicts:
        owner = chosen.get(conflict.owner)
        if owner is None or conflict.address in asks_for(owner):
            return True
    return False


def _later_rival(chosen: Claims) -> ServiceName | None:
    seen: set[L3n4Addr] = set()
    for name, claim in chosen.items():
        asked = asks_for(claim)
        if not asked.isdisjoint(seen):
            return name
        seen |= asked
    return None

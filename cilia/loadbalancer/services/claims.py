# SPDX-License-Identifier: Apache-2.0
"""Which waiting services can be given their addresses; pure.

A service waits while another owns an address that it asks for. Owners may be waiting themselves:
two services that exchange addresses wait for each other, and only together can both be served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.frontend_claims import FrontendClaim


def grantable(claims: Iterable[FrontendClaim]) -> list[FrontendClaim]:
    """The claim that waits longest of those that can be met, with the claims that must be met
    together with it; empty if none can.

    ``claims`` are as of now, and hold those of every owner in conflict that waits itself.
    """
    waiting = {claim.service.name: claim for claim in claims}
    for claim in sorted(waiting.values(), key=lambda claim: claim.since):
        together = _together(claim, waiting)
        if together:
            return together
    return []


def asks_for(claim: FrontendClaim) -> set[L3n4Addr]:
    return {params.address for params in claim.frontends}


def _together(
    claim: FrontendClaim, waiting: Mapping[ServiceName, FrontendClaim]
) -> list[FrontendClaim]:
    """The claim and those whose grant frees its addresses, and theirs; empty if that cannot be.

    An owner frees an address when it is granted a claim that does not ask for it any more.
    """
    together: dict[ServiceName, FrontendClaim] = {}
    asked: set[L3n4Addr] = set()
    needed = [claim]
    while needed:
        one = needed.pop()
        if one.service.name in together:
            continue
        if not asked.isdisjoint(asks_for(one)):
            return []
        asked |= asks_for(one)
        together[one.service.name] = one
        for conflict in one.conflicts:
            owner = waiting.get(conflict.owner)
            if owner is None or conflict.address in asks_for(owner):
                return []
            needed.append(owner)
    return list(together.values())

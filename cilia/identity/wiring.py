# SPDX-License-Identifier: Apache-2.0
"""Security identities, wired: what is desired -> numbers, shared with other nodes or our own."""

from __future__ import annotations

from dataclasses import dataclass

from cilia.identity.allocation import IdentityAllocator
from cilia.identity.desired import DesiredIdentities
from cilia.identity.local import LocalIdentities
from cilia.identity.objects import IdentityObjects
from cilia.identity.reflector import identity_reflector
from cilia.identity.shared import SharedIdentities
from cilia.k8s.object_writer import SharedObjects
from cilia.program.health import HealthReporter
from cilia.program.parts import Context, Job, Part
from statedb import RWTable
from tables.identity.desired_identities import DesiredIdentity, new_desired_identities_table
from tables.identity.identities import (
    Identity,
    new_identities_table,
    new_k8s_identities_table,
)

__all__ = ["IdentityPart", "build"]


@dataclass(kw_only=True)
class IdentityPart(Part):
    identities: RWTable[Identity]
    desired: RWTable[DesiredIdentity]
    # True if nodes agree by objects, False if this node gives the numbers alone.
    is_shared: bool

    def owned_by(self, owner: str) -> DesiredIdentities:
        """Return what an owner asks for numbers by."""
        return DesiredIdentities(self.desired, self.identities, owner, adopts=not self.is_shared)


def build(ctx: Context) -> IdentityPart:
    """Give numbers to what owners of ``desired-identities`` ask for."""
    part = IdentityPart(
        identities=new_identities_table(ctx.db),
        desired=new_desired_identities_table(ctx.db),
        is_shared=ctx.shared is not None,
    )
    if ctx.shared is None:
        local = LocalIdentities(ctx.db, part.desired, part.identities)
        part.jobs = {"local-identities": local.run}
    else:
        part.jobs = _shared(ctx, ctx.shared, part)
    return part


def _shared(ctx: Context, shared: SharedObjects, part: IdentityPart) -> dict[str, Job]:
    objects = new_k8s_identities_table(ctx.db)
    reflector = identity_reflector(shared.source, ctx.db, objects, ctx.problems)
    controller = SharedIdentities(ctx.db, objects, part.desired, part.identities)
    health = HealthReporter(ctx.db, ctx.health, "identity", "allocation")
    edge = IdentityObjects(shared.writer)
    allocator = IdentityAllocator(ctx.db, objects, part.desired, edge, health)
    return {
        "reflect-identities": reflector.run,
        "identities": controller.run,
        "allocate-identities": allocator.run,
    }

# SPDX-License-Identifier: Apache-2.0
"""What one transaction will say: of services, in the order in which they first appear, and problems
by their origin."""

from __future__ import annotations

import msgspec

from cilia.k8s.change_time import Changed
from cilia.k8s.objects import ObjectKey
from cilia.loadbalancer.services.conversion import ConvertedService
from cilia.loadbalancer.services.writer import KEEP, Keep
from tables.addressing import ServiceName
from tables.problems import Problem


class ObjectChange(msgspec.Struct, frozen=True):
    """A change of an object whose time the source knows, as it was taken into the tables."""

    key: ObjectKey
    service: ServiceName
    changed: Changed
    deleted: bool = False


class Touched:
    """What a batch says of one service: its object (None: gone), and if its slices changed."""

    __slots__ = ("service", "slices_changed")

    def __init__(self) -> None:
        self.service: ConvertedService | Keep | None = KEEP
        self.slices_changed = False


class Batch:
    """Filled by `KnownObjects`, written by `BatchWriter`."""

    __slots__ = ("changes", "problems", "touched")

    def __init__(self) -> None:
        self.changes: list[ObjectChange] = []
        self.touched: dict[ServiceName, Touched] = {}
        self.problems: dict[str, list[Problem]] = {}

    def touch(self, name: ServiceName) -> Touched:
        """Return what the batch says of a service so far."""
        what = self.touched.get(name)
        if what is None:
            what = self.touched[name] = Touched()
        return what

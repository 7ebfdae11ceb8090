# SPDX-License-Identifier: Apache-2.0
"""The node that the load balancer runs on: name, labels, zone, addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tables.addressing import IP

ZONE_LABEL: Final = "topology.kubernetes.io/zone"


class LocalNode(msgspec.Struct, frozen=True):
    """The node that this agent runs on."""

    name: str
    labels: Mapping[str, str] = {}
    addresses: frozenset[IP] = frozenset()

    @property
    def zone(self) -> str:
        return self.labels.get(ZONE_LABEL, "")

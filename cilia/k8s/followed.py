# SPDX-License-Identifier: Apache-2.0
"""One resource that is followed: where it is read, who is told, and what is known of it.

The parts of a watch share this: `watch_list` and `watch_stream` tell the audience and write the
ledger, `watch_proofs` compares the ledger with the server.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cilia.k8s.client import Client
from cilia.k8s.ledger import Ledger
from cilia.k8s.object_events import ObjectEvents
from cilia.k8s.resource import Resource
from cilia.k8s.watch import Event
from cilia.k8s.watch_report import WatchReport


class Audience(Protocol):
    """Receives the events of one resource, in order."""

    def tell(self, events: list[Event]) -> None: ...

    async def room(self) -> None:
        """Wait while the readers have too much to read already."""


class Followed(NamedTuple):
    client: Client
    resource: Resource
    audience: Audience
    ledger: Ledger
    events: ObjectEvents
    report: WatchReport

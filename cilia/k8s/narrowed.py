# SPDX-License-Identifier: Apache-2.0
"""Manifests without the objects that an API server would not send: no resource selects them.

Selectors by labels only: a node's own pods are told from others by whoever reads pods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from cilia.k8s.manifests import ManifestSource
from cilia.k8s.objects import K8sObject
from cilia.k8s.resource import Resource
from cilia.k8s.watch import Delete, Event, Upsert
from cilia.k8s.watch_state import WatchState
from tables.selectors import Selector, parse_selector


class NarrowedSource:
    """See above. Kinds without a selector pass."""

    def __init__(self, source: ManifestSource, resources: Iterable[Resource]) -> None:
        self._source: Final = source
        self._selectors: Final[dict[str, Selector]] = {
            resource.kind.KIND: parse_selector(resource.label_selector)
            for resource in resources
            if resource.label_selector
        }

    async def run(self) -> None:
        await self._source.run()

    def observe(self, observer: Callable[[WatchState], None]) -> None:
        self._source.observe(observer)

    async def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        async for events in self._source.watch(*kinds):
            yield [self._narrowed(event) for event in events]

    def _narrowed(self, event: Event) -> Event:
        """An object that is not selected any more is gone; to readers that never had it, nothing
        happens."""
        if not isinstance(event, Upsert):
            return event
        selector = self._selectors.get(event.obj.KIND)
        if selector is None or selector.matches(event.obj.metadata.labels or {}):
            return event
        return Delete(event.obj.key, event.changed)

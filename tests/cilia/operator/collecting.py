# SPDX-License-Identifier: Apache-2.0
"""An operator that collects over a directory of objects, by a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from cilia.k8s import objects as k8s
from cilia.k8s.crds import CiliumEndpoint, CiliumIdentity
from cilia.k8s.errors import ApiError
from cilia.k8s.object_files import object_files_source
from cilia.k8s.object_writer import ObjectWriter, SharedObjects
from cilia.k8s.objects import decode
from cilia.k8s.store import ObjectStore
from cilia.k8s.watch import Delete, Upsert
from cilia.operator.collection import Collection
from cilia.operator.config import OperatorConfig

MINUTE = 60.0


class ApiPods:
    """The pods of a cluster, as its API server tells them to an operator."""

    def __init__(self) -> None:
        self.source = ObjectStore()
        self.source.set_complete()
        #: Labels and uid, by name.
        self.there: dict[str, tuple[str, str]] = {}

    def put(self, name: str, app: str, uid: str) -> None:
        form = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "test", "uid": uid, "labels": {"app": app}},
            "spec": {"nodeName": "any", "containers": [{"name": "main"}]},
        }
        self.there[name] = (app, uid)
        self.source.publish([Upsert(decode(form))])

    def remove(self, name: str) -> None:
        del self.there[name]
        self.source.publish([Delete((k8s.Pod.KIND, "test", name))])


class Operator:
    """One leadership; `stop` ends it as a kill does."""

    def __init__(
        self,
        directory: Path,
        pods: ApiPods,
        writer: ObjectWriter,
        clock: Callable[[], float],
        group: TaskGroup,
        **options: Any,
    ) -> None:
        shared_source = object_files_source(directory, CiliumIdentity, CiliumEndpoint)
        config = OperatorConfig(pod_network=True, **options)
        self.collection = Collection(
            config, pods.source, SharedObjects(shared_source, writer), clock
        )
        self._scope = anyio.CancelScope()
        group.start_soon(self._run, shared_source.run)

    async def _run(self, read: Callable[[], Any]) -> None:
        with self._scope:
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                for reflector in self.collection.reflectors:
                    group.start_soon(reflector)

    def stop(self) -> None:
        self._scope.cancel()

    async def look(self) -> dict[str, int]:
        """Have both collectors look once; return what became of objects, by `COLLECTOR/OUTCOME`."""
        await self.collection.read()
        found: dict[str, int] = {}
        for what, _, collect in self.collection.collectors:
            try:
                collected = await collect()
            except ApiError:
                continue  # the next look does what is left
            assert not collected.unread
            found |= {f"{what}/{outcome}": n for outcome, n in collected.outcomes.items()}
        return found

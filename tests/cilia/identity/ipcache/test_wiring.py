# SPDX-License-Identifier: Apache-2.0
"""The whole way from tables to the map, at a start with what a former run left in it."""

from __future__ import annotations

from typing import Any

import anyio
from prometheus_client import CollectorRegistry

from bpf.maps import ipcache as codec
from bpf.maps.fake import FakeMap
from bpf.maps.raw import ANY
from cilia.identity.ipcache import wiring
from cilia.program.parts import Context
from reconcilers.metrics import NoMetrics
from reconcilers.verify import new_drift_table
from statedb import DB
from tables.addressing import IP
from tables.cluster.nodes import new_nodes_table
from tables.endpoints.endpoints import new_endpoints_table
from tables.health import new_health_table
from tables.loadbalancer.backends import new_backends_table
from tables.node.devices import new_devices_table
from tables.problems import new_problems_table
from tests.cilia.identity.ipcache.world import BOTH, apiserver, device, endpoint, node


class RecordingMap(FakeMap):
    """Remembers what was written, by prefix."""

    def __init__(self) -> None:
        super().__init__(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES)
        self.written: dict[str, list[int]] = {}

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        prefix, identity = str(codec.decode_key(key)), codec.decode_value(value).identity
        self.written.setdefault(prefix, []).append(identity)
        super().update(key, value, flags)

    def identities(self) -> dict[str, int]:
        return {
            str(codec.decode_key(key)): codec.decode_value(value).identity
            for key, value in self.items()
        }


def context(db: DB) -> Context:
    health, problems, drift = new_health_table(db), new_problems_table(db), new_drift_table(db)
    objects: Any = None
    return Context(db, objects, health, problems, drift, NoMetrics(), CollectorRegistry())


async def test_what_a_weaker_source_says_first_is_never_in_force() -> None:
    db = DB()
    ctx = context(db)
    inputs = wiring.Inputs(
        new_endpoints_table(db), new_devices_table(db), new_nodes_table(db), new_backends_table(db)
    )
    tables: tuple[Any, ...] = (inputs.endpoints, inputs.devices, inputs.nodes, inputs.backends)
    with db.write_txn(*tables) as wtxn:
        read = {table.name: table.register_initializer(wtxn, "test") for table in tables}
    raw = RecordingMap()
    before = {"10.1.0.7": 300, "10.1.0.9": 299, "192.0.2.1": 1}
    for text, identity in before.items():
        key = codec.encode_key(codec.IPCacheKey(IP.parse(text).packed, 32))
        FakeMap.update(raw, key, codec.encode_value(codec.IPCacheValue(identity)))
    part = wiring.build(ctx, inputs, raw, "one", BOTH)

    def write(table: Any, *rows: Any) -> None:
        with db.write_txn(table) as wtxn:
            table.insert_many(wtxn, rows)
            read[table.name](wtxn)

    async with anyio.create_task_group() as group:
        ctx.start(group, part.jobs)
        # Another node has this node's address and its pod's in its object, by mistake.
        write(inputs.nodes, node("two", "192.0.2.1", "10.1.0.7", "192.0.2.2"))
        write(inputs.backends, apiserver("192.0.2.1"))
        await anyio.wait_all_tasks_blocked()
        assert raw.written == {}
        write(inputs.endpoints, endpoint(7, "10.1.0.7", identity=300))
        write(inputs.devices, device(2, "eth0", "192.0.2.1"))
        with anyio.fail_after(5):
            await part.synchronised(db)
            while "10.1.0.9/32" in raw.identities():
                await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    assert raw.written == {
        "0.0.0.0/0": [9],
        "::/0": [10],
        "10.1.0.7/32": [300],
        "192.0.2.1/32": [1],
        "192.0.2.2/32": [6],
    }
    assert raw.identities() == {prefix: written[-1] for prefix, written in raw.written.items()}

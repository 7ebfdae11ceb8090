# SPDX-License-Identifier: Apache-2.0
"""An ADD's wait: until the endpoint is ready, and its addresses have its identity in the map."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from cilia.endpoints.registry import DELETED
from tests.cilia.endpoints.stage import Stage
from tests.cilia.identity.ipcache.agent import EP, FULL, Agent, new_map
from tests.patience import PATIENCE

#: Longer than any step here.
LONG_S = 5.0 * PATIENCE


async def test_the_wait_ends_when_the_map_has_the_addresses() -> None:
    agent = Agent(new_map())
    registry = Stage(agent).registry
    agent.put(EP)
    ended: list[int] = []

    async def wait() -> None:
        assert await registry.wait_ready(EP.id, LONG_S) == ""
        ended.append(len(agent.differences()))

    async with agent.running(), anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert ended == []
        agent.inputs_are_read()
    assert ended == [0]


@pytest.mark.parametrize(
    ("entries", "inputs", "reason"),
    [
        (100, False, "behind 10.1.0.7 is Pending"),
        (FULL, True, "behind 10.1.0.7 failed: "),
    ],
)
async def test_the_wait_says_what_the_map_lacks(entries: int, inputs: bool, reason: str) -> None:
    agent = Agent(new_map(entries))
    registry = Stage(agent).registry
    if inputs:
        agent.inputs_are_read()
    async with agent.running():
        if inputs:
            await agent.part.synchronised(agent.db)
        agent.put(EP)
        await agent.until(reason)
        assert reason in await registry.wait_ready(EP.id, 0.05)


async def test_the_wait_ends_when_the_endpoint_goes() -> None:
    agent = Agent(new_map())
    registry = Stage(agent).registry
    agent.put(EP)
    with anyio.fail_after(LONG_S):
        async with agent.running(), anyio.create_task_group() as group:
            await anyio.wait_all_tasks_blocked()
            group.start_soon(anyio.to_thread.run_sync, agent.remove, EP)
            assert await registry.wait_ready(EP.id, 2 * LONG_S) == DELETED

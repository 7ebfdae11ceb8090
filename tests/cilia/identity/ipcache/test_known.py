# SPDX-License-Identifier: Apache-2.0
"""Whether addresses are in force with an identity: an ADD waits for it, and CHECK compares."""

from __future__ import annotations

import msgspec

from bpf.maps import ipcache as codec
from tables.addressing import IP
from tests.cilia.identity.ipcache.agent import EP, FULL, Agent, new_map
from tests.cilia.identity.ipcache.world import endpoint

OTHER = endpoint(8, "10.1.0.7", identity=301)
IPV6_ONLY = frozenset({True})


async def test_nothing_is_lacking_when_the_map_has_all_and_not_before() -> None:
    agent = Agent(new_map())
    assert agent.lacks() == "nobody has said yet which identity is behind 10.1.0.7"
    async with agent.running():
        agent.put(EP)
        await agent.until("until these are known: devices")
        assert agent.differences() == [
            "cilia_ipcache has identity 0 behind 10.1.0.7, not 300",
            "cilia_ipcache has identity 0 behind fd00::7, not 300",
        ]
        agent.inputs_are_read()
        await agent.until("")
        assert agent.differences() == []


async def test_an_identity_that_changes_is_lacking_until_the_map_has_the_new_one() -> None:
    agent = Agent(new_map())
    agent.inputs_are_read()
    async with agent.running():
        agent.put(EP)
        await agent.until("")
        changed = msgspec.structs.replace(EP, identity=400)
        assert "says that identity 300 is behind 10.1.0.7" in agent.lacks(changed)
        agent.put(changed)
        await agent.until("", changed)
        assert agent.differences(changed) == []
        assert agent.differences() != []


async def test_a_full_map_is_said() -> None:
    agent = Agent(new_map(FULL))
    agent.inputs_are_read()
    async with agent.running():
        await agent.part.synchronised(agent.db)
        agent.put(EP)
        await agent.until("the identity behind 10.1.0.7 failed: ")


async def test_an_address_of_two_endpoints_is_the_newest_ones() -> None:
    """The old one, whose end is late, lacks it; and lacks nothing when the other goes."""
    agent = Agent(new_map())
    agent.inputs_are_read()
    async with agent.running():
        agent.put(EP)
        await agent.until("")
        agent.put(OTHER)
        await agent.until("endpoint 8 says that identity 301 is behind 10.1.0.7")
        agent.remove(OTHER)
        await agent.until("")


async def test_a_family_that_is_off_lacks_nothing() -> None:
    agent = Agent(new_map(), IPV6_ONLY)
    agent.inputs_are_read()
    async with agent.running():
        agent.put(EP)
        await agent.until("")
    assert agent.differences() == []
    addresses = {codec.decode_key(key).address for key, _ in agent.raw.items()}
    assert addresses == {bytes(16), IP.parse("fd00::7").packed}

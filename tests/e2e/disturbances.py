# SPDX-License-Identifier: Apache-2.0
"""Causes that act on the node of `disturbed` while its streams run; each ends as it began."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.e2e.disturbed import Disturbed
from tests.e2e.pods import PodNode

#: How long an agent lives at most: about twice a start, so that half of the kills are during one.
LIFE_S = 2.0
AT_ONCE = 20

Cause = Callable[[Disturbed, random.Random], None]


def agent_is_killed(d: Disturbed, rng: random.Random) -> None:
    """At a random moment of its start or after it; the next one is started."""
    time.sleep(rng.uniform(0, LIFE_S))  # the moment is what is random here
    d.agents.kill()
    d.agents.launch()


def agent_is_another_build(d: Disturbed, rng: random.Random) -> None:
    """One with other programs and another map layout takes over, and hands back."""
    for build in ("other", "this"):
        d.agents.kill()
        d.agents.start(build)


def objects_are_away(d: Disturbed, rng: random.Random) -> None:
    """The directory of manifests is away and comes back.

    Half of the time an agent is started meanwhile: it refuses, and the next one must serve.
    """
    manifests = d.node.world.manifests
    aside = manifests.with_name("aside")
    manifests.rename(aside)
    restarted = rng.random() < 0.5
    if restarted:
        agent_is_killed(d, rng)
    time.sleep(rng.uniform(0, LIFE_S))  # looks of an agent that finds nothing
    aside.rename(manifests)
    if restarted:
        d.agents.kill()
        d.agents.start()
    d.node.world.eventually(d.node.world.ready, 30)


def devices_change(d: Disturbed, rng: random.Random) -> None:
    """A device, an address, and the size of packets come and go; the agent sees each step."""
    for come, go, seen in DEVICE_CHANGES:
        for lines, there in ((come, True), (go, False)):
            d.node.node.ip_batch(lines)
            d.node.world.eventually(lambda seen=seen, there=there: seen(d.node) is there)  # type: ignore[misc]


def _has_device(node: PodNode) -> bool:
    return any(row["Name"] == "other0" for row in node.rows("devices"))


def _has_address(address: str, node: PodNode) -> bool:
    return address in str(node.rows("node-addresses"))


def _is_narrow(node: PodNode) -> bool:
    return any(row["Name"] == "eth0" and row["MTU"] == 1400 for row in node.rows("devices"))


DEVICE_CHANGES: tuple[tuple[list[str], list[str], Callable[[PodNode], bool]], ...] = (
    (
        [
            "link add other0 type veth peer name other1",
            "link set other0 up",
            "link set other1 up",
            "addr add 192.0.3.1/24 dev other0",
            "route add 198.18.0.0/24 via 192.0.3.9 dev other0",
        ],
        ["link del other0"],
        _has_device,
    ),
    (
        ["addr add 192.0.2.101/24 dev eth0"],
        ["addr del 192.0.2.101/24 dev eth0"],
        partial(_has_address, "192.0.2.101"),
    ),
    (
        ["addr add fd00:2::101/64 dev eth0 nodad"],
        ["addr del fd00:2::101/64 dev eth0"],
        partial(_has_address, "fd00:2::101"),
    ),
    (["link set eth0 mtu 1400"], ["link set eth0 mtu 1500"], _is_narrow),
)


def pods_come_and_go(d: Disturbed, rng: random.Random, *, count: int = AT_ONCE) -> None:
    """ADD and DEL of so many pods, some at once."""
    names = [f"storm{number}" for number in range(count)]
    d.node.write_pods(names)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(partial(_come_and_go, d.node), names))
    finally:
        d.node.remove_pods(names)


def _come_and_go(node: PodNode, name: str) -> None:
    pod = node.namespace(name)
    pod.result = node.cni("ADD", pod)
    node.delete(name)


CAUSES: dict[str, Cause] = {
    "agent is killed": agent_is_killed,
    "agent is another build": agent_is_another_build,
    "objects are away": objects_are_away,
    "pods come and go": pods_come_and_go,
    "devices change": devices_change,
}

# SPDX-License-Identifier: Apache-2.0
"""The rows of `make soak-pods`, a moment each: nothing that pods send is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e import other_build
from tests.e2e.disturbances import CAUSES
from tests.e2e.disturbed import Disturbed, disturbed
from tests.e2e.nodes import nft, run
from tests.e2e.pod_leaks import Leaks, Storm, leaks
from tests.soak.pods import Stretch, disturb

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

TIMES = {"agent is killed": 3}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    directory = tmp_path_factory.mktemp("disturbed")
    other_build.make(directory / "other", other_build.OTHER_LAYOUT)
    with disturbed(directory, "disturbed") as made:
        made.agents.add_build("other", directory / "other")
        made.streams.read()
        yield made


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leaks]:
    with leaks(tmp_path_factory.mktemp("leaks"), "leaks") as made:
        yield made


@pytest.mark.parametrize("cause", CAUSES)
def test_streams_of_pods_are_not_disturbed(stage: Disturbed, cause: str) -> None:
    kept: list[Stretch] = []
    disturb(stage, cause, TIMES.get(cause, 1), random.Random(), kept.append)
    (stretch,) = kept
    assert stretch.told.harmless(), stretch
    assert stretch.told.packets > 100


@contextmanager
def rule(stage: Disturbed, text: str) -> Iterator[None]:
    """A rule of the router about what it forwards."""
    nft(
        stage.router,
        "add table inet t; add chain inet t c { type filter hook forward priority 0; }",
    )
    nft(stage.router, f"add rule inet t c {text}")
    try:
        yield
    finally:
        nft(stage.router, "delete table inet t")


def test_a_packet_that_is_lost_is_counted(stage: Disturbed) -> None:
    assert stage.told().harmless()
    with rule(stage, "meta l4proto { udp, icmp } counter drop"):
        stage.node.world.eventually(lambda: " packets 0 " not in ruleset(stage))
    told = stage.told()
    assert told.lost > 0
    assert told.broken == 0
    assert set(told.harmed) <= {
        *(f"pod to world IPv{family} {kind}" for family in (4, 6) for kind in ("udp", "ping")),
        *(f"world to node port IPv{family} udp" for family in (4, 6)),
    }


def test_a_connection_that_breaks_is_counted(stage: Disturbed) -> None:
    assert stage.told().harmless()
    with rule(stage, "tcp dport 8080 ip daddr 198.51.100.7 counter reject with tcp reset"):
        stage.node.world.eventually(lambda: " packets 0 " not in ruleset(stage))
    told = stage.told()
    assert told.broken > 0
    assert set(told.harmed) <= {"pod to world IPv4 tcp", "pod to world IPv4 new"}


def ruleset(stage: Disturbed) -> str:
    return run(stage.router, "nft", "list", "ruleset")


def test_a_storm_of_pods_and_kills_leaves_nothing(storms: Leaks) -> None:
    storm = Storm()
    storms.storm(20, storm, random.Random())
    storm.left = storms.left()
    assert storm.harmless(), storm
    assert storm.operations == 20
    assert storm.plugins_killed > 0


def test_what_a_pod_leaves_is_counted(storms: Leaks) -> None:
    storms.node.write_pods([*storms.names, "stays"])
    pod = storms.node.namespace("stays")
    storms.node.world.eventually(lambda: len(storms.node.rows("k8s-pods")) > len(storms.names))
    pod.result = storms.node.cni("ADD", pod)
    left = {line.partition(":")[0] for line in storms.left(timeout_s=0)}
    assert {"links", "routes", "endpoint files", "pins", "addresses", "endpoints"} <= left
    assert {"ipcache rows", "cilia_ipcache", "cilia_endpoints", "cilia_lxc", "identities"} <= left
    storms.node.delete("stays")
    storms.node.remove_pods(["stays"])
    assert storms.left() == []


def test_pods_that_are_added_at_once_all_get_their_network(storms: Leaks) -> None:
    _, failures = storms.at_once(10)
    assert failures == []
    assert storms.left() == []

# SPDX-License-Identifier: Apache-2.0
"""When identities are marked and deleted."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from cilia.identity.collection import Rate, Step, Unused, labels_of_pods
from cilia.identity.objects import IdentityObjects
from cilia.k8s.object_files import ObjectFiles
from tables.cluster.namespaces import Namespace
from tables.cluster.pods import Pod
from tables.identity.identities import Identity
from tests.cilia.identity.test_shared import labels_of

TIMEOUT, INTERVAL = 30.0, 15.0
WEB = Identity(300, labels_of("web"), created_at=1.0)
MARKED = Identity(300, labels_of("web"), created_at=1.0, is_marked=True)


class Looks:
    """A collector's clock, and what it sees."""

    def __init__(self) -> None:
        self.unused = Unused(TIMEOUT, INTERVAL)

    def at(self, now: float, *identities: Identity, used: bool = False) -> list[Step]:
        found = self.unused.look(now, identities, {row.id for row in identities} if used else set())
        for step, identity in found:
            if step is Step.MARK:
                self.unused.marked(now, identity)
        return [step for step, _ in found]


def test_an_unused_identity_is_marked_after_the_timeout_and_deleted_an_interval_later() -> None:
    looks = Looks()
    assert looks.at(0, WEB, used=True) == []
    assert looks.at(29, WEB) == []
    assert looks.at(30, WEB) == [Step.MARK]
    assert looks.at(44, MARKED) == []
    assert looks.at(45, MARKED) == [Step.DELETE]


def test_within_two_timeouts_it_is_gone() -> None:
    """The interval is half of the timeout, as by default: it was used until just after a look."""
    looks, now, seen = Looks(), 0.0, WEB
    looks.at(now, WEB, used=True)
    while True:
        now += INTERVAL
        steps = looks.at(now, seen)
        if steps == [Step.DELETE]:
            break
        seen = MARKED if steps else seen
    assert now <= 2 * TIMEOUT


def test_what_is_used_is_never_touched() -> None:
    looks = Looks()
    for now in range(0, 1000, 10):
        assert looks.at(now, WEB, used=True) == []
        assert looks.at(now, MARKED, used=True) == []


def test_whoever_takes_the_mark_away_uses_it() -> None:
    looks = Looks()
    looks.at(0, WEB)
    assert looks.at(30, WEB) == [Step.MARK]
    assert looks.at(100, WEB) == [], "the mark is gone"
    assert looks.at(129, WEB) == []
    assert looks.at(130, WEB) == [Step.MARK]


def test_a_new_leader_waits_as_if_all_had_just_been_used() -> None:
    looks = Looks()
    assert looks.at(0, MARKED) == []
    assert looks.at(30, MARKED) == [], "its predecessor's mark counts from when it could be deleted"
    assert looks.at(45, MARKED) == [Step.DELETE]


def test_a_number_that_is_made_anew_is_another_identity() -> None:
    looks = Looks()
    looks.at(0, WEB)
    again = Identity(300, labels_of("db"), created_at=20.0)
    assert looks.at(20, again) == []
    assert looks.at(49, again) == []
    assert looks.at(50, again) == [Step.MARK]


def test_pods_use_the_identities_that_their_labels_make() -> None:
    namespaces = [Namespace("test", {"team": "red"}), Namespace("other", {})]
    pods = [
        Pod("test", "a", labels={"app": "web", "pod-template-hash": "1"}),
        Pod("test", "b", labels={"app": "web", "pod-template-hash": "2"}),
        Pod("other", "c", labels={"app": "web"}, service_account="robot"),
        Pod("test", "d", labels={"app": "host"}, host_network=True),
        Pod("gone", "e", labels={"app": "late"}),
    ]
    found = sorted(
        dict(label.split("=") for label in labels)["k8s:app"]
        for labels in labels_of_pods(pods, namespaces)
    )
    assert found == ["late", "web", "web"]


async def test_an_object_whose_mark_was_taken_away_is_left(tmp_path: Path) -> None:
    """Also if whoever deletes has not read that yet."""
    files = ObjectFiles(tmp_path)
    edge = IdentityObjects(files)
    await edge.create(300, labels_of("web"))
    assert await edge.mark(300, "2026-11-30T12:00:00Z")
    assert not await edge.mark(300, "2026-11-30T12:01:00Z"), "it is marked already"
    await edge.unmark(300)
    assert not await edge.delete_marked(300)
    assert await edge.has(300, labels_of("web"))
    assert await edge.mark(300, "2026-11-30T12:02:00Z")
    assert await edge.delete_marked(300)
    assert not await edge.has(300, labels_of("web"))


async def test_writes_are_limited_by_time() -> None:
    now = 0.0
    waited: list[float] = []

    async def sleep(wait_s: float) -> None:
        nonlocal now
        waited.append(wait_s)
        now += wait_s

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio, "sleep", sleep)
        rate = Rate(3, 60.0, lambda: now)
        for _ in range(3):
            await rate.take()
        assert waited == []
        await rate.take()
        assert waited == [60.0]
        await rate.take()
        await rate.take()
        assert now == 60.0
        await rate.take()
        assert now == 120.0

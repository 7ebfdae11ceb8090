# SPDX-License-Identifier: Apache-2.0
"""What a stream of versions is worth, and what differs from a list."""

from __future__ import annotations

import random

from cilia.k8s.ledger import Differences, Ledger, Verdict
from cilia.k8s.objects import ObjectKey


def key(name: str) -> ObjectKey:
    return ("Service", "default", name)


def ledger_at(revision: int, **versions: int) -> Ledger:
    ledger = Ledger()
    ledger.revision = revision
    ledger.versions = {key(name): version for name, version in versions.items()}
    return ledger


def test_events_in_order_are_new() -> None:
    ledger = ledger_at(10)
    verdicts = [
        ledger.take(key("a"), 11, "ADDED"),
        ledger.take(key("a"), 12, "MODIFIED"),
        ledger.take(key("a"), 13, "DELETED"),
        ledger.take(key("a"), 14, "ADDED"),
    ]
    assert verdicts == [Verdict.NEW] * 4
    assert ledger.versions == {key("a"): 14}
    assert ledger.revision == 14


def test_repeated_event_is_a_duplicate_when_it_was_the_last_and_when_it_was_not() -> None:
    ledger = ledger_at(10)
    ledger.take(key("a"), 11, "ADDED")
    assert ledger.take(key("a"), 11, "ADDED") is Verdict.DUPLICATE
    ledger.take(key("b"), 12, "ADDED")
    assert ledger.take(key("a"), 11, "ADDED") is Verdict.DUPLICATE
    ledger.take(key("a"), 13, "DELETED")
    assert ledger.take(key("a"), 13, "DELETED") is Verdict.DUPLICATE


def test_object_does_not_come_back_when_its_past_arrives_after_its_deletion() -> None:
    ledger = ledger_at(10, a=10)
    assert ledger.take(key("a"), 12, "DELETED") is Verdict.NEW
    assert ledger.take(key("a"), 11, "MODIFIED") is Verdict.DISORDER
    assert ledger.versions == {}


def test_older_event_of_another_object_is_disorder() -> None:
    ledger = ledger_at(10)
    ledger.take(key("a"), 12, "ADDED")
    assert ledger.take(key("b"), 11, "ADDED") is Verdict.DISORDER


def test_objects_of_one_write_share_a_revision() -> None:
    ledger = ledger_at(10)
    assert ledger.take(key("a"), 11, "ADDED") is Verdict.NEW
    assert ledger.take(key("b"), 11, "ADDED") is Verdict.NEW


def test_gap_shows_when_an_event_does_not_follow_on_what_is_known() -> None:
    ledger = ledger_at(10, a=5)
    assert ledger.take(key("a"), 11, "ADDED") is Verdict.GAP
    assert ledger.take(key("b"), 12, "MODIFIED") is Verdict.GAP
    assert ledger.take(key("c"), 13, "DELETED") is Verdict.GAP
    assert ledger.versions == {key("a"): 11, key("b"): 12}


def test_bookmark_moves_forward_only() -> None:
    ledger = ledger_at(10)
    assert ledger.reach(15)
    assert not ledger.reach(14)
    assert ledger.revision == 15


def test_differences_name_what_was_missed() -> None:
    ledger = ledger_at(20, same=5, old=6, gone=7)
    ledger.begin_proof()
    listed = {key("same"): 5, key("old"): 9, key("new"): 8}
    assert ledger.differences(listed, 20) == Differences(
        (key("new"),), (key("old"),), (key("gone"),)
    )


def test_an_older_version_in_a_newer_list_is_of_another_history() -> None:
    ledger = ledger_at(20, restored=15, ahead=19)
    ledger.begin_proof()
    ledger.take(key("ahead"), 31, "MODIFIED")
    listed = {key("restored"): 5, key("ahead"): 19}
    assert ledger.differences(listed, 30) == Differences(changed=(key("restored"),))


def test_a_proof_is_void_once_everything_was_forgotten() -> None:
    ledger = ledger_at(20, gone=4)
    proving = [ledger.proving]
    ledger.begin_proof()
    proving.append(ledger.proving)
    ledger.forget()
    assert (ledger.versions, ledger.revision) == ({}, 0)
    # The stream of the next history goes on without it.
    ledger.take(key("gone"), 5, "ADDED")
    ledger.take(key("gone"), 6, "DELETED")
    assert [*proving, ledger.proving] == [False, True, False]


def test_stream_that_is_ahead_of_the_list_does_not_differ() -> None:
    ledger = ledger_at(20, changed=5, deleted=6, recreated=7)
    ledger.begin_proof()
    listed = {key("changed"): 5, key("deleted"): 6, key("recreated"): 7}
    ledger.take(key("changed"), 21, "MODIFIED")
    ledger.take(key("deleted"), 22, "DELETED")
    ledger.take(key("recreated"), 23, "DELETED")
    ledger.take(key("recreated"), 24, "ADDED")
    ledger.take(key("added"), 25, "ADDED")
    assert not ledger.differences(listed, 20)


def test_ledger_equals_the_server_whatever_is_repeated_held_back_or_lost() -> None:
    """Random faults on a stream: until the first verdict that asks for a list, a ledger that lost
    nothing is right, and one that is wrong is found by the differences."""
    found = dict.fromkeys(Verdict, 0)
    for seed in range(2_000):
        rng = random.Random(seed)
        server: dict[ObjectKey, int] = {}
        events = []
        for revision in range(1, 40):
            name = key(rng.choice("abcde"))
            if name in server and rng.random() < 0.4:
                del server[name]
                events.append((name, revision, "DELETED"))
            else:
                events.append((name, revision, "MODIFIED" if name in server else "ADDED"))
                server[name] = revision
        place = rng.randrange(len(events))
        match rng.choice(["repeat", "swap", "drop"]):
            case "repeat":
                events.insert(rng.randrange(place, len(events)) + 1, events[place])
            case "swap":
                events.insert(min(place + rng.randint(1, 5), len(events)), events.pop(place))
            case "drop":
                events.pop(place)
        ledger = Ledger()
        ledger.begin_proof()
        verdicts = {ledger.take(*event) for event in events}
        for verdict in verdicts:
            found[verdict] += 1
        suspicious = verdicts & {Verdict.GAP, Verdict.DISORDER}
        if ledger.versions != server:
            assert suspicious or ledger.differences(server, 40), seed
    assert all(found.values()), found

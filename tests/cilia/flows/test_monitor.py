# SPDX-License-Identifier: Apache-2.0
"""`cilia monitor` without an agent: which events it shows, in which form, and what is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from bpf.events import EventKind
from cilia.flows.cli import monitor as module
from cilia.flows.wire import ALIVE, Frame, FrameKind, encode, frames, notice
from tests.cilia.flows.made import FORGED, batch, event

PASSED = {**FORGED, "kind": EventKind.TRACE, "observation_point": 101, "destination_endpoint": 8}
OTHER = {**PASSED, "source_endpoint": 8, "destination_endpoint": 5}
EVENTS = batch(event(**FORGED), event(**PASSED), event(**OTHER))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds that the command asks an agent for, which tells of three events and two losses."""
    kinds: list[str] = []

    def listen(_: str, wanted: str) -> Iterator[Frame]:
        kinds.append(wanted)
        told = [notice(listening=True), encode(FrameKind.RECORDS, EVENTS.raw), ALIVE]
        told += [notice(lost=3, at="ring", kind=1), notice(lost=4, at="reader")]
        told += [encode(FrameKind(1), EVENTS.raw)]
        yield from frames(told)

    rows = [{"Namespace": "shop", "Pod": "web-0", "ID": 5}]
    monkeypatch.setattr(module, "_listen", listen)
    monkeypatch.setattr(module, "pod_network_rows", lambda *_: rows)
    return kinds


def shown(*arguments: str) -> list[str]:
    done = CliRunner().invoke(module.monitor, arguments, obj={"socket": "none"})
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_all_events_and_losses_are_shown(asked: list[str]) -> None:
    first = [line.partition(" flow")[0] for line in shown()]
    events = ["xx drop (Invalid source ip)", "-> endpoint 8", "-> endpoint 5"]
    lost = [
        "Lost 3 events (drop): the ring buffer was full",
        "Lost 4 events: this command was too slow",
    ]
    assert first == [*events, *lost, *events]
    assert asked == ["drop,trace"]


def test_agent_is_asked_for_the_types(asked: list[str]) -> None:
    shown("-t", "trace")
    shown("-t", "trace", "--type", "drop")
    assert asked == ["trace", "trace,drop"]


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        (["--from", "5"], [(5, 0), (5, 8)]),
        (["--from", "5", "--from", "8"], [(5, 0), (5, 8), (8, 5)]),
        (["--to", "8"], [(5, 8)]),
        (["--related-to", "8"], [(5, 8), (8, 5)]),
        (["--from", "8", "--to", "8"], []),
        (["--from-pod", "shop/web-0"], [(5, 0), (5, 8)]),
        (["--to-pod", "shop/web-0"], [(8, 5)]),
        (["--from", "8", "--from-pod", "shop/web-0"], [(5, 0), (5, 8), (8, 5)]),
    ],
)
def test_ends_choose_events(
    asked: list[str], arguments: list[str], ends: list[tuple[int, int]]
) -> None:
    objects: list[dict[str, Any]] = [json.loads(line) for line in shown("-o", "json", *arguments)]
    found = [(one["source"], one["destination"]) for one in objects if one["type"] != "lost"]
    assert found == [*ends, *ends]
    assert [one["count"] for one in objects if one["type"] == "lost"] == [3, 4]


def test_pod_without_an_endpoint_is_refused(asked: list[str]) -> None:
    done = CliRunner().invoke(module.monitor, ["--to-pod", "shop/x"], obj={"socket": "none"})
    assert done.exit_code == 1
    assert "no endpoint of this node is pod shop/x" in done.output
    assert asked == []


def test_bytes_are_shown_with_all_that_is_known(asked: list[str]) -> None:
    lines = shown("--hex", "-n", "-t", "drop", "--to", "0")
    assert lines[0] == "-" * 78
    assert lines[1].startswith("CPU 01: MARK 0x0 FROM 5 DROP: 54 bytes")
    assert lines[2].startswith("00000000  02 00 00 00 00 01")

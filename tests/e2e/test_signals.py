# SPDX-License-Identifier: Apache-2.0
"""Signals, limits and a log that takes no more: what an agent does, and what a command says."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.api.client import AgentUnreachable, ApiError, request
from tests.e2e.world import World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "signals") as made:
        yield made


def logged(w: World) -> list[str]:
    lines = (w.directory / "agent.log").read_text().splitlines()
    return [str(json.loads(line).get("signal")) for line in lines]


def test_a_closed_terminal_ends_the_agent_in_order(w: World) -> None:
    agent = w.start_agent()
    w.eventually(w.ready)
    agent.send_signal(signal.SIGHUP)
    assert agent.wait(10) == 0
    assert "SIGHUP" in logged(w)


def test_under_nohup_the_agent_stays(w: World) -> None:
    entering = w.entering()
    w.entering = lambda: ["nohup", *entering]  # type: ignore[method-assign]
    agent = w.start_agent()
    w.eventually(w.ready)
    agent.send_signal(signal.SIGHUP)
    assert w.get("/status")["pid"] == agent.pid


def test_a_limit_of_open_files_that_is_too_low_is_a_sentence(w: World) -> None:
    done = subprocess.run(
        ["prlimit", "--nofile=64:64", *w.entering(), *w.command()],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 1
    assert "may open 64 files, and needs 512 or more" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_that_takes_no_more_ends_nothing(w: World) -> None:
    with open("/dev/full", "wb") as full:
        agent = subprocess.Popen([*w.entering(), *w.command()], stdout=full, stderr=full)
    w.agents.append(agent)
    w.eventually(w.ready)
    assert w.get("/status")["healthy"]


def test_a_stopped_agent_is_named_and_does_nothing_late(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = w.start_agent()
    w.eventually(w.ready)
    socket = str(w.state_dir / "cilia.sock")
    agent.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(AgentUnreachable, match=rf"kill -CONT {agent.pid}"):
            request(socket, "/replacement", method="PUT", body={"on": False}, timeout_s=0.2)
    finally:
        agent.send_signal(signal.SIGCONT)
    assert w.get("/status")["replacement"] != "hand_back"
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    with pytest.raises(ApiError, match="nobody waits"):
        request(socket, "/status", timeout_s=0.2)

# SPDX-License-Identifier: Apache-2.0
"""`make run`: what it makes is gone afterwards, and what a killed run left goes with the next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cilia.cli.quickstart import stage

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-u", "-m", "cilia", "quickstart"]
AGENT_DIR = Path("/run") / stage.INSTANCE


def test_a_killed_run_is_removed_by_the_next() -> None:
    killed = subprocess.Popen(COMMAND, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert killed.stdout
    with killed.stdout:
        for line in killed.stdout:
            if line.startswith("Ctrl-C"):
                break
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert stage.leftovers()
    assert AGENT_DIR.exists()
    next_run = subprocess.run(
        [*COMMAND, "--oneshot"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert next_run.returncode == 0, next_run.stdout + next_run.stderr
    assert "Removing what an earlier run left: " in next_run.stdout
    assert "is answered by backend-1" in next_run.stdout
    assert stage.leftovers() == []
    assert not AGENT_DIR.exists()

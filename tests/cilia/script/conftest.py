# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the engine's own tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import dedent

import pytest

from cilia.script.commands import CommandLike
from cilia.script.engine import Ending, Engine
from cilia.script.generic import GENERIC_COMMANDS
from cilia.script.state import State

Execute = Callable[..., Ending]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "work", deadline=time.monotonic() + 10, env={"PATH": "/usr/bin:/bin"})


@pytest.fixture
def execute(state: State) -> Execute:
    """Run a script text with the generic commands and further ones."""

    def run(script: str, *extra: CommandLike, commands: Iterable[CommandLike] = ()) -> Ending:
        engine = Engine(
            [*GENERIC_COMMANDS, *extra, *commands],
            retry_interval_s=0.001,
            max_retry_interval_s=0.004,
        )
        return engine.run(state, dedent(script), "test.txtar")

    return run

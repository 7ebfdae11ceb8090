# SPDX-License-Identifier: Apache-2.0
"""The program, compiled from the checkout's sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from cilia.endpoints.cni.forwarder import NAME, build
from tests.cilia.endpoints.cni.recorder import Recorder
from tests.cilia.endpoints.cni.runtime import Runtime


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / NAME
    build(path)
    return path


@pytest.fixture(scope="session")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with a second for everything."""
    path = tmp_path_factory.mktemp("impatient") / NAME
    build(path, ["CONNECT_S=1", "ANSWER_S=1", "SHORT_ANSWER_S=1", "LOCK_S=1"])
    return path


@pytest.fixture
def runtime(program: Path, tmp_path: Path) -> Runtime:
    return Runtime(program, tmp_path / "cni.sock")


@pytest.fixture
def plugin() -> Recorder:
    return Recorder()

# SPDX-License-Identifier: Apache-2.0
"""Options of the whole test suite."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.kernel import Kernel, new_kernel
from tests.patience import PATIENCE

# Bytecode is kept, also where the environment forbids it, as images often do: otherwise each worker
# compiles all tests, and each command under test all of its modules. Workers and commands inherit
# the environment.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What decides about a change is the same each time; everybody else's runs go on searching.
# The time of one example says nothing on a machine that is busy.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("default")
if os.environ.get("CI"):
    settings.load_profile("ci")


# These need programs that take minutes to build: collected only where they are asked for.
collect_ignore = ["kube", "node"]

#: A module whose every test needs root says so in one line.
ALL_ROOT = re.compile(r"^pytestmark = \[?pytest\.mark\.root\b", re.MULTILINE)


def pytest_configure() -> None:
    """Commands under test are interrupted, also when a shell started the tests in the background
    or under nohup: a child inherits that a signal is ignored, and Python then leaves it so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import modules of which no test can be selected: those that need root are many, and
    their packets and programs take a sixth of the time of a collection."""
    if config.option.markexpr != "not root" or collection_path.suffix != ".py":
        return None
    return True if ALL_ROOT.search(collection_path.read_text()) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Multiply the time-out of each test, its own or the default."""
    if PATIENCE == 1:
        return
    default = config.getoption("timeout") or config.getini("timeout")
    for item in items:
        own = item.get_closest_marker("timeout")
        timeout_s = float(own.args[0] if own else default)
        item.add_marker(pytest.mark.timeout(timeout_s * PATIENCE), append=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what golden scripts found into their expected files",
    )


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """Return a network namespace without a way out, with the `ip` command in it."""
    with new_kernel() as kernel:
        yield kernel


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait 0.05 s instead of a second until a file that is gone or empty has lost its objects."""
    monkeypatch.setattr("cilia.k8s.directory_files.GRACE_S", 0.05)
    monkeypatch.setattr("cilia.k8s.directory_files.HOPE_S", 0.1)


@pytest.fixture
def whole_grace(short_grace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `short_grace` for a test of what does not happen meanwhile."""
    monkeypatch.setattr("cilia.k8s.directory_files.GRACE_S", 1.0)
    monkeypatch.setattr("cilia.k8s.directory_files.HOPE_S", 2.0)

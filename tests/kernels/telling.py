# SPDX-License-Identifier: Apache-2.0
"""Plugin of pytest inside: leaves out tests that an earlier run has done, tells of each that is
over, and shows at once what failed. The console is all that leaves the guest, and a run may end
early.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

#: The tests that are left out, a line each.
DONE_BEFORE = Path("/tests-done-before")

#: How a line begins that names a test that needs no other run, and one that tells how many there
#: are.
OVER = "cilia-test-over:"
COUNT = "cilia-tests:"


class Telling:
    """Tell of tests where their reports come together."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._failed: set[str] = set()

    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Tell how many tests there are; each worker finds the same."""
        self._terminal.write_line(f"{COUNT} {len(ids)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Show a failure; name the test at its end unless it failed."""
        if report.failed:
            self._failed.add(report.nodeid)
            self._terminal.write_line(f"{report.when} of {report.nodeid} failed")
            self._terminal.write_line(report.longreprtext)
        elif report.when == "teardown" and report.nodeid not in self._failed:
            self._terminal.write_line(f"{OVER} {report.nodeid}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is done."""
    done = set(DONE_BEFORE.read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus() -> Generator[None, Any, Any]:
    """Print no letter: each test has its line."""
    status = yield
    return status and (status[0], "", *status[2:])


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tell in the process that has the console, not in the workers of xdist."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Telling(terminal))

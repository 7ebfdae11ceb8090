# SPDX-License-Identifier: Apache-2.0
"""Records that could not be read, as problems: state directory -> problems.

Whoever finds such a file gives it another name and goes on without it (`cilia/linux/records.py`).
What it said is lost to the agent, so somebody has to hear of it: its row stays until the file is
removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cilia.linux.path_watch import PathWatch
from cilia.linux.records import BROKEN
from statedb import DB, RWTable
from tables.problems import Problem, replace_problems

__all__ = ["SetAside"]

_ORIGIN: Final = "state-directory"


class SetAside:
    """`directories`: where records are; one that is not there is looked for when it comes."""

    def __init__(self, db: DB, problems: RWTable[Problem], directories: Sequence[Path]) -> None:
        self._db = db
        self._problems = problems
        self._directories = directories

    async def run(self) -> None:
        """Keep the rows as the directories are, until cancelled."""
        told: list[Problem] | None = None
        while True:
            with PathWatch(self._directories, self._directories) as watch:
                found = [_problem(path) for path in _set_aside(self._directories)]
                if found != told:
                    with self._db.write_txn(self._problems) as wtxn:
                        replace_problems(self._problems, wtxn, _ORIGIN, found, time.time())
                    told = found
                await _until_set_aside(watch)


async def _until_set_aside(watch: PathWatch) -> None:
    """Wait until a file is set aside or removed; files of endpoints come and go all the time."""
    while True:
        changed = await watch.wait()
        if watch.leads_elsewhere(changed) or any(path.suffix == BROKEN for path in changed):
            return


def _set_aside(directories: Iterable[Path]) -> Iterator[Path]:
    for directory in directories:
        try:
            names = os.listdir(directory)  # no object for the file of each endpoint
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (directory / name for name in sorted(names) if name.endswith(BROKEN))


def _problem(path: Path) -> Problem:
    message = "could not be read and was set aside, what it said is lost: look at it and remove it"
    return Problem(_ORIGIN, message, file=str(path))

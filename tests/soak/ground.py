# SPDX-License-Identifier: Apache-2.0
"""`make soak-ground`: do to what an agent stands on all that may be done, and print the table.

`tests/e2e/ground.py` says what is looked at. A run that was ended goes on with the rows that are
left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.benchmarks.report import machine
from tests.e2e.ground import Ground, Row, ground
from tests.e2e.ground_rows import rows
from tests.soak.journal import journal

WHEN: Final = {
    "running": Ground.under_a_running_agent,
    "before a start": Ground.before_a_start,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name has these words")
    only = parser.parse_args().only
    with journal("soak-ground", {"only": only}) as kept:
        stage = _Stage()
        try:
            table = [row for row in rows(stage.ground.pins()) if only in row.name]
            total = len(table) * len(WHEN)
            done = {tuple(piece[:2]) for piece in kept.pieces}
            for row in table:
                for when in WHEN:
                    if (row.name, when) not in done:
                        wrong = stage.judge(row, when)
                        kept.add((row.name, when, wrong), f"{len(kept.pieces) + 1} of {total} rows")
                        print(row.name, "|", when, "|", wrong or "ok", file=sys.stderr, flush=True)
        finally:
            stage.close()
        failed = [piece for piece in kept.pieces if piece[2]]
        kept.finish(f"{len(failed)} of {len(kept.pieces)} rows are wrong")
    print(f"{machine()}\n\n{len(kept.pieces)} rows, {len(failed)} wrong")
    for name, when, wrong in failed:
        print(f"| {name} | {when} | {'; '.join(wrong)} |")
    return 1 if failed else 0


class _Stage:
    """A world that is made anew after a row that went wrong: the next one is judged alone."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._context = ground(Path(self._directory.name), "ground")
        self.ground = self._context.__enter__()

    def judge(self, row: Row, when: str) -> list[str]:
        try:
            wrong = WHEN[when](self.ground, row)
        except Exception as error:  # noqa: BLE001 - of this row
            wrong = [f"{type(error).__name__}: {error}"[:2000]]
        if wrong:
            try:
                self.close()
            except Exception as error:  # noqa: BLE001 - what the row left
                wrong.append(f"the stage does not end: {error}"[:500])
            self._open()
        return wrong

    def close(self) -> None:
        try:
            self._context.__exit__(None, None, None)
        finally:
            self._directory.cleanup()


if __name__ == "__main__":
    sys.exit(main())

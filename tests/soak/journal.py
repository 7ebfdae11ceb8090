# SPDX-License-Identifier: Apache-2.0
"""The record of a long run, so that one that was ended goes on where it was.

A journal is a file of JSON lines in `.bench/`: first the commit and the settings, then a line for
each finished piece, at last the result. A run of the same commit and settings takes over the pieces
that are there and does the others; any other run, or one after a result, begins anew. Whoever runs
holds a lock on the file: a second run is refused.

`python -m tests.soak.journal` tells how far each run is, and whether it is at work.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / ".bench"
#: Between two lines of progress.
TELL_S = 10.0


class Busy(SystemExit):
    """The same run is at work in another process; ends this one with that sentence."""


class Journal:
    """The finished pieces of a run; made by `journal`, which holds the lock."""

    def __init__(self, name: str, file: IO[bytes], pieces: list[Any]) -> None:
        self.name = name
        self.pieces = pieces
        self._file = file
        self._told = -TELL_S

    def add(self, piece: Any, progress: str) -> None:
        """Record a finished piece, which outlives this process from here on, and tell how far the
        run is.
        """
        self.pieces.append(piece)
        self._write({"piece": piece, "progress": progress})
        if time.monotonic() - self._told >= TELL_S:
            self._told = time.monotonic()
            print(f"{self.name}: {progress}", file=sys.stderr, flush=True)

    def finish(self, result: str) -> None:
        """Record the result; the next run begins anew."""
        self._write({"result": result})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def journal(
    name: str, settings: dict[str, Any], directory: Path = DIRECTORY, commit: str = ""
) -> Iterator[Journal]:
    """The journal of a run; it has the pieces of one that was ended, if that was of the same commit
    (by default the one of the checkout) with the same settings.

    Raises:
        Busy: if another process has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    head = {"run": name, "commit": commit or checked_out(), "settings": settings}
    with (directory / f"{name}.jsonl").open("a+b") as file:
        _lock(file, name)
        lines = _whole_lines(file)
        if lines[:1] == [head] and "result" not in lines[-1]:
            _cut_to_whole_lines(file)
            found = Journal(name, file, [line["piece"] for line in lines[1:]])
            print(f"{name}: going on after {_progress(lines)}", file=sys.stderr, flush=True)
        else:
            file.truncate(0)
            found = Journal(name, file, [])
            found._write(head)
        yield found


def checked_out() -> str:
    """The commit of the checkout, with a digest of how files differ from it, if they do."""
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)[:12]
    changes = subprocess.check_output(["git", "diff", "HEAD"], cwd=ROOT)
    return f"{commit}+{sha256(changes).hexdigest()[:8]}" if changes else commit


def status(directory: Path = DIRECTORY) -> list[str]:
    """A line for each run that has a journal here."""
    return [line for path in sorted(directory.glob("*.jsonl")) for line in _status(path)]


def _status(path: Path) -> Iterator[str]:
    """Of one file; nothing if it is no journal."""
    with path.open("rb") as file:
        try:
            _lock(file, path.stem)
            state = "ended early; started again it goes on"
        except Busy:
            state = "at work"
        lines = _whole_lines(file)
    if not lines or "run" not in lines[0]:
        return
    if "result" in lines[-1]:
        state = lines[-1]["result"]
    yield f"{path.stem}: {_progress(lines)}, {state} ({lines[0]['commit']})"


def _progress(lines: list[dict[str, Any]]) -> str:
    return next((line["progress"] for line in reversed(lines) if "progress" in line), "nothing")


def _lock(file: IO[bytes], name: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Busy(f"{name} is at work in another process") from error


def _cut_to_whole_lines(file: IO[bytes]) -> None:
    """Take off what a kill left of a line, so that the next one does not join it."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _whole_lines(file: IO[bytes]) -> list[dict[str, Any]]:
    """The lines of the file without what a kill left of the last one."""
    file.seek(0)
    content = file.read()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


if __name__ == "__main__":
    print("\n".join(status()) or "no long run has a journal here")

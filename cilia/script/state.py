# SPDX-License-Identifier: Apache-2.0
"""What the commands of one script share: directory, variables, buffers, time, log.

A state belongs to one script and one thread at a time. `stdout` and `stderr` are what the last
command with output left; `read_text` takes these two names for the buffers, as all commands do.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilia.script import txtar
from cilia.script.commands import CommandSet, OutputLike
from cilia.script.environment import expand
from cilia.script.errors import CommandFailed, DeadlineExceeded, ParseError
from cilia.script.goregexp import quote_meta

if TYPE_CHECKING:
    from cilia.script.conditions import Condition
    from cilia.script.tokens import Want

SEPARATORS: Mapping[str, str] = {"/": "/", ":": ":"}
BUFFERS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class BackgroundJob:
    """A command that runs until `wait`: `finish` waits for it and returns its output."""

    text: str
    want: Want
    finish: Callable[[], OutputLike]


class State:
    """The surroundings of a running script.

    `deadline` is on the monotonic clock. `sink` receives the log as it is written; the log of the
    current section, which a failure shows, is kept apart. A `confined` state refuses paths that
    leave the work directory. Without `log_output` the log does not repeat the buffers.
    `update_golden` and `record_golden` are for commands that compare.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        env: Mapping[str, str] | None = None,
        deadline: float = math.inf,
        update_golden: bool = False,
        sink: Callable[[str], None] | None = None,
        confined: bool = False,
        log_output: bool = True,
    ) -> None:
        self.workdir = workdir.resolve()
        self.cwd = self.workdir
        temporary = self.workdir / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        self.env: dict[str, str] = {
            **SEPARATORS,
            **(env or {}),
            "WORK": str(self.workdir),
            "PWD": str(self.workdir),
            "TMPDIR": str(temporary),
        }
        self.deadline = deadline
        self.update_golden = update_golden
        self.confined = confined
        self.outputs = 0
        self.stdout = ""
        self.stderr = ""
        self.retry_count = 0
        self.retrying = False
        self.background: list[BackgroundJob] = []
        self.commands = CommandSet()
        self.conditions: Mapping[str, Condition] = {}
        self.run_line: Callable[[str], None] | None = None
        self.section_log: list[str] = []
        self.goldens: dict[str, str] = {}
        self._archived: dict[Path, txtar.File] = {}
        self._sink = sink
        self._log_output = log_output
        self._cancelled = threading.Event()

    # Files

    def path(self, name: str) -> Path:
        """The path of a name as the script means it: relative to its current directory."""
        path = Path(self.cwd, name)
        if self.confined and not path.resolve().is_relative_to(self.workdir):
            raise CommandFailed(f"{name} is outside of the work directory")
        return path

    def read_text(self, name: str) -> str:
        """The content of a file, or of a buffer if the name is `stdout` or `stderr`."""
        if name in BUFFERS:
            return self.stdout if name == "stdout" else self.stderr
        return txtar.decode(self.path(name).read_bytes())

    def write_text(self, name: str, text: str) -> None:
        self.path(name).write_bytes(txtar.encode(text))

    def chdir(self, name: str) -> None:
        path = self.path(name)
        if not path.is_dir():
            raise CommandFailed(f"cd {name}: no such directory")
        self.cwd = path.resolve()
        self.env["PWD"] = str(self.cwd)

    def extract(self, archive: txtar.Archive) -> None:
        """Write the files of an archive; their names are expanded, their contents are not.

        Raises: ParseError for a name that leads out of the work directory.
        """
        for file in archive.files:
            path = Path(self.cwd, self.expand(file.name))
            inside = path.resolve().is_relative_to(self.workdir)
            if not inside or path.resolve() == self.workdir:
                raise ParseError(f"file {file.name!r} is outside of the work directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(txtar.encode(file.content))
            self._archived[path.resolve()] = file

    # Golden files

    def archived(self, name: str) -> txtar.File | None:
        """The file of the archive that this name means, if it is one."""
        return None if name in BUFFERS else self._archived.get(self.path(name).resolve())

    def record_golden(self, name: str, content: str) -> None:
        """Note the content that a file of the archive is to have from now on."""
        file = self.archived(name)
        if file is None:
            self.log(f"{name} is no file of the archive: nothing to update\n")
        else:
            self.goldens[file.name] = content

    # Variables

    def expand(self, text: str, *, in_regexp: bool = False) -> str:
        """Replace `$NAME` and `${NAME}`; in a regular expression the values are quoted."""

        def value(name: str) -> str:
            text = self.env.get(name, "")
            return quote_meta(text) if in_regexp else text

        return expand(text, value)

    # Time

    def remaining_s(self) -> float:
        """Seconds until the deadline; 0 when it has passed or the script was cancelled."""
        return 0.0 if self._cancelled.is_set() else max(0.0, self.deadline - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Sleep for a time of the script.

        Raises: DeadlineExceeded when the script's time ends first.
        """
        remaining = self.remaining_s()
        elapsed = not self._cancelled.wait(min(seconds, remaining, threading.TIMEOUT_MAX))
        if elapsed and seconds < remaining:
            return
        raise DeadlineExceeded("the script's deadline has passed")

    def cancel(self) -> None:
        """End the script's time now; may be called from another thread."""
        self._cancelled.set()

    # Log

    def log(self, text: str) -> None:
        """Write to the log, which is not one of the buffers."""
        self.section_log.append(text)
        if self._sink:
            self._sink(text)

    def set_output(self, output: OutputLike) -> None:
        """Replace both buffers, and log what is in them; `outputs` counts how often."""
        self.stdout, self.stderr = output.stdout, output.stderr
        self.outputs += 1
        if not self._log_output:
            return
        for name, text in (("stdout", output.stdout), ("stderr", output.stderr)):
            if text:
                self.log(f"[{name}]\n{text}" + ("" if text.endswith("\n") else "\n"))


Flags = dict[str, Any]

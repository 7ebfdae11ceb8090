# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the live shell: one line at a time against a set of commands.

A session keeps variables, buffers and a work directory between lines. The directory is private to
the session: files that a line names are sent along with it, files that it wrote are sent back, and
no path leads out of it, since the agent may see another file system than whoever types, and has
more rights. For the same reason there is no `exec`, no link and no `break` here. Blocking: call it
from a worker thread.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cilia.script import txtar
from cilia.script.commands import CommandLike
from cilia.script.engine import Engine, end_background
from cilia.script.errors import ScriptError
from cilia.script.generic import GENERIC_COMMANDS
from cilia.script.helptext import command_help, usage_line
from cilia.script.outcomes import describe
from cilia.script.state import State

LINE_LIMIT_S = 60.0
MAX_SESSIONS = 16
MAX_FILE_BYTES = 4 << 20
_NOT_REMOTE = frozenset({"break", "chmod", "exec", "skip", "stop", "symlink"})


class Session:
    """What one user of the shell has between lines."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._directory = tempfile.TemporaryDirectory(prefix="cilia-shell-")
        self.state = State(Path(self._directory.name), confined=True, log_output=False)

    def close(self) -> None:
        """End what runs in the background and remove the directory."""
        self.state.cancel()
        with self.lock:
            end_background(self.state)
            self._directory.cleanup()


class Sessions:
    """The sessions of a live shell, by an id that the client chooses; the least used goes first.

    `commands` is called for each line, so that it may change while sessions live.
    """

    def __init__(
        self, commands: Callable[[], Iterable[CommandLike]], *, limit_s: float = LINE_LIMIT_S
    ) -> None:
        self._commands = commands
        self._limit_s = limit_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def commands(self) -> list[CommandLike]:
        """All commands of the shell: the generic ones that are safe here, and the given ones."""
        generic = [command for command in GENERIC_COMMANDS if command.name not in _NOT_REMOTE]
        return [*generic, *self._commands()]

    def describe(self) -> list[dict[str, Any]]:
        """Commands as plain values, for help and completion on the other side of a socket."""
        return [
            {
                "name": command.name,
                "summary": command.summary,
                "usage": usage_line(command),
                "help": command_help(command, verbose=True),
                "flags": [f"--{flag.name}" for flag in command.flags],
                "words": list(words() if (words := getattr(command, "words", None)) else ()),
            }
            for command in sorted(self.commands(), key=lambda command: command.name)
        ]

    def run(
        self, session_id: str, line: str, files: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Run a line; `files` are put into the session's directory before.

        Returns `stdout`, `stderr`, `error` (empty: it succeeded), `log`, and under `files` what was
        written or changed. Never raises for anything that the line does.
        """
        session = self._session(session_id)
        with session.lock:
            return _run_line(Engine(self.commands()), session.state, line, files, self._limit_s)

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Serve one request: `line`, and if wanted `session`, `files` (name to text), `close`.

        Raises: ValueError if the request is not of this form.
        """
        session_id, line = body.get("session", ""), body.get("line", "")
        files, close = body.get("files", {}), body.get("close", False)
        texts = [session_id, line, *files, *files.values()] if isinstance(files, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("expected line and session as texts, files as names with texts")
        result = self.run(session_id, line, files)
        if close:
            self.close(session_id)
        return result

    def close(self, session_id: str) -> None:
        """Forget a session; no error if there is none."""
        with self._lock:
            session = self._sessions.pop(session_id, None)
        if session is not None:
            session.close()

    def close_all(self) -> None:
        for session_id in list(self._sessions):
            self.close(session_id)

    def _session(self, session_id: str) -> Session:
        evicted: Session | None = None
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                session = self._sessions[session_id] = Session()
                if len(self._sessions) > MAX_SESSIONS:
                    _, evicted = self._sessions.popitem(last=False)
            self._sessions.move_to_end(session_id)
        if evicted is not None:
            evicted.close()
        return session


def _run_line(
    engine: Engine, state: State, line: str, files: Mapping[str, str] | None, limit_s: float
) -> dict[str, Any]:
    state.deadline = time.monotonic() + limit_s
    state.section_log.clear()
    outputs, error = state.outputs, ""
    before = dict[Path, tuple[int, int]]()
    try:
        for name, text in (files or {}).items():
            state.path(name).parent.mkdir(parents=True, exist_ok=True)
            state.write_text(name, text)
        before = _stamps(state.workdir)
        engine.run_line(state, line)
    except (ScriptError, OSError) as failure:
        error = describe(failure)
    produced = state.outputs != outputs
    return {
        "stdout": state.stdout if produced else "",
        "stderr": state.stderr if produced else "",
        "error": error,
        "log": "".join(state.section_log),
        "files": _changed(state.workdir, before),
    }


def _stamps(directory: Path) -> dict[Path, tuple[int, int]]:
    """Time and size of every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: (stat.st_mtime_ns, stat.st_size) for path in files for stat in [path.stat()]}


def _changed(directory: Path, before: Mapping[Path, tuple[int, int]]) -> dict[str, str]:
    """The contents of the files that are new or changed, by name below the directory."""
    return {
        str(path.relative_to(directory)): txtar.decode(path.read_bytes())
        for path, stamp in _stamps(directory).items()
        if before.get(path) != stamp and stamp[1] <= MAX_FILE_BYTES
    }

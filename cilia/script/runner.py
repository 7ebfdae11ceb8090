# SPDX-License-Identifier: Apache-2.0
"""Runs script files: archive, work directory, application, deadline, update.

Used by the test runner and by `cilia script run` alike. Everything of a run is its own, so that any
number may run at once, in threads or in processes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cilia.script import txtar
from cilia.script.application import Application, Lifecycle, hive_commands
from cilia.script.engine import MAX_RETRY_INTERVAL_S, RETRY_INTERVAL_S, Ending, Engine
from cilia.script.errors import ScriptFailed
from cilia.script.generic import GENERIC_COMMANDS
from cilia.script.outcomes import describe
from cilia.script.state import State

DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Suite:
    """How the scripts of a folder are run.

    `application` is given the flags of the script's first line. `environment` is what is defined
    besides the variables that always are. `variants` are further flags, by name, with which every
    script is run once each, after its own flags.
    """

    application: Callable[[Sequence[str]], Application]
    environment: Mapping[str, str] = field(default_factory=dict)
    retry_interval_s: float = RETRY_INTERVAL_S
    max_retry_interval_s: float = MAX_RETRY_INTERVAL_S
    deadline_s: float = DEADLINE_S
    variants: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"": ()})


@dataclass(frozen=True, slots=True)
class FileResult:
    """How a script file ended, and whether its golden files were rewritten."""

    ending: Ending
    updated: tuple[str, ...] = ()


def run_file(
    file: Path,
    suite: Suite,
    *,
    variant: str | None = None,
    update: bool = False,
    workdir: Path | None = None,
    sink: Callable[[str], None] | None = None,
) -> FileResult:
    """Run one script file in a work directory of its own, by default one that is removed after.

    Without a `variant` there are no flags but the script's own. With `update` the expected files in
    it become what was found. `sink` receives the log.

    Raises: ScriptFailed; OSError if the file cannot be read.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="cilia-script-") as directory:
            return run_file(
                file, suite, variant=variant, update=update, workdir=Path(directory), sink=sink
            )
    archive = txtar.parse(file.read_bytes())
    state = State(
        workdir,
        env={"DATADIR": os.path.abspath(file.parent), **suite.environment},
        deadline=time.monotonic() + suite.deadline_s,
        update_golden=update,
        sink=sink,
    )
    further = suite.variants[variant] if variant is not None else ()
    flags = [*script_flags(archive.script, state.workdir), *further]
    ending = _run(archive, state, suite, flags, str(file))
    changed = tuple(sorted(state.goldens))
    if changed:
        file.write_bytes(txtar.render(updated(archive, state.goldens)))
    return FileResult(ending, changed)


def script_flags(script: str, workdir: Path) -> list[str]:
    """The application's flags from a first line `#!…`; `$WORK` in them is the work directory."""
    first = script.partition("\n")[0]
    if not first.startswith("#!"):
        return []
    words = first.removeprefix("#!").strip().split(" ")
    # A bare `#!` is one empty word, and two blanks enclose one.
    return [word.replace("$WORK", str(workdir)) for word in words if word]


def updated(archive: txtar.Archive, goldens: Mapping[str, str]) -> txtar.Archive:
    """The archive with new contents for some of its files."""
    files = (txtar.File(file.name, goldens.get(file.name, file.content)) for file in archive.files)
    return txtar.Archive(archive.script, tuple(files))


def _run(
    archive: txtar.Archive, state: State, suite: Suite, flags: Sequence[str], name: str
) -> Ending:
    try:
        state.extract(archive)
        application = suite.application(flags)
    except Exception as error:
        raise ScriptFailed(name, 1, "", describe(error)) from error
    engine = Engine(
        (),
        retry_interval_s=suite.retry_interval_s,
        max_retry_interval_s=suite.max_retry_interval_s,
    )

    def use_commands() -> None:
        engine.replace_commands(
            [*GENERIC_COMMANDS, *hive_commands(lifecycle), *application.commands()]
        )

    lifecycle = Lifecycle(application, use_commands)
    use_commands()
    try:
        ending = engine.run(state, archive.script, name)
    except ScriptFailed as failed:
        # The script's failure is the news; that the application then does not stop is a note to it.
        _close(lifecycle, failed)
        raise
    try:
        lifecycle.close()
    except Exception as error:
        raise ScriptFailed(name, _lines(archive), "", f"stop: {describe(error)}") from error
    return ending


def _close(lifecycle: Lifecycle, failed: ScriptFailed) -> None:
    try:
        lifecycle.close()
    except Exception as error:  # noqa: BLE001 - told with the failure that is being raised
        failed.log += f"stop: {describe(error)}\n"


def _lines(archive: txtar.Archive) -> int:
    return archive.script.count("\n")

# SPDX-License-Identifier: Apache-2.0
"""What a golden script does to its API server, step by step, recorded while it runs."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec

from cilia.agent.script.application import SUITE
from cilia.k8s.documents import read_yaml
from cilia.k8s.tracker import Conflict, NotFound, Tracker, TrackerError
from cilia.script import txtar
from cilia.script.runner import run_file
from tests.expected_failure import expected_failure

TESTDATA: Final = Path(__file__).resolve().parents[2] / "testdata"
FOLDER: Final = TESTDATA / "loadbalancer"

Form = dict[str, Any]


class Put(msgspec.Struct, frozen=True):
    form: Form


class Remove(msgspec.Struct, frozen=True):
    form: Form


class Replace(msgspec.Struct, frozen=True):
    """These instead of all objects of a resource."""

    resource: str
    forms: tuple[Form, ...]


Step = Put | Remove | Replace


def scripts() -> list[Path]:
    """Return the scripts that pass: one that is to fail does not do all of its steps."""
    return [path for path in sorted(FOLDER.rglob("*.txtar")) if not expected_failure(path)]


def flags_of(path: Path) -> list[str]:
    """The options of a script, without those that name a file of its directory."""
    first = txtar.parse(path.read_bytes()).script.split("\n")[0]
    words = first.removeprefix("#!").split() if first.startswith("#!") else []
    return [word for word in words if not word.startswith("--lb-state-file")]


class _Recording(Tracker):
    """Notes what is asked of it, also what it refuses as no object; not what is none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def add(self, data: bytes) -> None:
        self.steps += map(Put, _forms([data]))
        super().add(data)

    def update(self, data: bytes, *, strict: bool = False) -> None:
        try:
            super().update(data, strict=strict)
        except (NotFound, Conflict):
            raise
        except TrackerError:
            self.steps += map(Put, _forms([data]))
            raise
        self.steps += map(Put, _forms([data]))

    def delete(self, data: bytes) -> None:
        super().delete(data)
        self.steps += map(Remove, _forms([data]))

    def resync(self, resource: str, documents: Iterable[bytes] = ()) -> None:
        texts = list(documents)
        super().resync(resource, texts)
        self.steps.append(Replace(resource, tuple(_forms(texts))))


def _forms(texts: Iterable[bytes]) -> list[Form]:
    documents = [document for text in texts for document in read_yaml(text)]
    return [copy.deepcopy(doc.form) for doc in documents if isinstance(doc.form, dict)]


def recorded(path: Path) -> Sequence[Step]:
    """Runs a script as `make test` does. Raises ScriptFailed."""
    tracker = _Recording()
    with (
        mock.patch("cilia.agent.script.application.Tracker", return_value=tracker),
        tempfile.TemporaryDirectory() as directory,
    ):
        run_file(path, SUITE, variant="fake", workdir=Path(directory), sink=lambda text: None)
    return tracker.steps

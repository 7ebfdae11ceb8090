# SPDX-License-Identifier: Apache-2.0
"""Where objects are written: files of a directory, or a real API server.

Both are told of an object and of its end; what a store refuses is counted and is no failure.
"""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Protocol

from tests.kube.apiserver import READY_TIMEOUT_S, ApiServer, Settings
from tests.kube.golden_cluster import Cluster, key_of, prepare
from tests.kube.programs import ProgramFailed
from tests.soak.agent.objects import Form, broken_texts

#: Changes between two restarts of the API server.
RESTART_EVERY = 1_500
#: Of one change, while the server ends connections.
ATTEMPTS = 4
#: Files without an object, at most.
BROKEN_FILES = 4


class Store(Protocol):
    """Objects are written by one thread."""

    #: Flags of the agent.
    source: list[str]

    @property
    def refused(self) -> int:
        """How many objects the source did not take."""

    def put(self, form: Form) -> None:
        """Make or change an object."""

    def remove(self, form: Form) -> None:
        """Take an object away that was put."""

    def disturb(self, rng: random.Random) -> None:
        """Do to the source what else may happen to it."""

    def tend(self) -> None:
        """What the thread that made the source has to do: a program ends with its thread."""

    def calm(self) -> None:
        """Take back what `disturb` did."""


class Files:
    """A file an object, and files that hold none."""

    def __init__(self, directory: Path) -> None:
        self.source = [f"--k8s-manifests={directory}"]
        self.refused = 0
        self._directory = directory

    def put(self, form: Form) -> None:
        self._write(self._path(form), json.dumps(form))

    def remove(self, form: Form) -> None:
        self._path(form).unlink(missing_ok=True)

    def disturb(self, rng: random.Random) -> None:
        path = self._directory / f"broken-{rng.randrange(BROKEN_FILES)}.yaml"
        if rng.random() < 0.5:
            path.unlink(missing_ok=True)
        else:
            self._write(path, rng.choice(list(broken_texts(rng))))

    def tend(self) -> None:
        """Nothing."""

    def calm(self) -> None:
        for path in self._directory.glob("broken-*"):
            path.unlink()

    def _path(self, form: Form) -> Path:
        return self._directory / f"{form['kind'].lower()}.{form['metadata']['name']}.yaml"

    def _write(self, path: Path, text: str) -> None:
        """In one step, as editors do."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text)
        temporary.rename(path)


class Served:
    """A real API server, which is started anew now and then."""

    def __init__(self, server: ApiServer) -> None:
        self.source = [f"--k8s-kubeconfig-path={server.kubeconfig}"]
        self.restarts = 0
        self._server = server
        self._cluster = Cluster(server)
        self._changes = 0
        self._lock = Lock()
        prepare(server)

    @staticmethod
    def settings() -> Settings:
        """Addresses of its own, none of which an object asks for."""
        return Settings(service_cidrs="203.0.113.0/24,fd00:203::/112")

    @property
    def refused(self) -> int:
        return sum(self._cluster.refused.values())

    def put(self, form: Form) -> None:
        self._patiently(partial(self._cluster.put, form))

    def remove(self, form: Form) -> None:
        key = key_of(form)
        stored = self._cluster.stored.get(key)

        def remove() -> None:
            if stored is not None:
                self._cluster.stored[key] = stored  # the attempt before has forgotten it
            with suppress(ProgramFailed):  # and may have deleted it; what is left shows in the end
                self._cluster.remove(key)

        self._patiently(remove)
        if form["kind"] == "Namespace":
            self._patiently(partial(self._finish, form["metadata"]["name"]))

    def _patiently(self, work: Callable[[], object]) -> None:
        """Try again when the server is there: it ends connections when it has too much to do."""
        with self._lock:
            for _ in range(ATTEMPTS - 1):
                try:
                    work()
                except (OSError, http.client.HTTPException):
                    self._server.server.wait_until(self._server.ready, READY_TIMEOUT_S)
                else:
                    return
            work()

    def disturb(self, rng: random.Random) -> None:
        self._changes += 1

    def tend(self) -> None:
        if self._changes >= (self.restarts + 1) * RESTART_EVERY:
            with self._lock:
                self._server.restart()
            self.restarts += 1

    def calm(self) -> None:
        """Nothing stays."""

    def _finish(self, namespace: str) -> None:
        """Say that it is empty, as a controller does."""
        path = f"/api/v1/namespaces/{namespace}"
        status, answer = self._server.request("GET", path)
        if status == 200:
            form = json.loads(answer)
            form["spec"]["finalizers"] = []
            self._server.request("PUT", f"{path}/finalize", form)

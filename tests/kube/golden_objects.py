# SPDX-License-Identifier: Apache-2.0
"""The objects of the golden scripts, stored in a real API server, beside the same as manifests.

    python -m tests.kube.golden_objects [SCRIPT...]

The API server defaults, allocates and refuses; what it refuses is printed with its reason, and both
sides then have what it took. Objects are completed by what every real one has (the image of a
container). Each script's first version of an object counts. Ends with 1 where tables differ.
"""

from __future__ import annotations

import asyncio
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import structlog
import yaml

from cilia.agent.script import parse as parse_flags
from cilia.k8s.documents import read_yaml
from cilia.k8s.objects import KINDS, K8sObject
from cilia.k8s.resource import Resource
from cilia.k8s.tracker import Tracker
from cilia.script import txtar

from .agents import api_source, rows, running_agent
from .apiserver import ApiServer

TESTDATA: Final = Path(__file__).resolve().parents[2] / "testdata"
FOLDERS: Final = ("loadbalancer", "healthserver", "redirectpolicy")
TABLES: Final = ("services", "frontends", "backends")
# Kinds without which services are the same; the scripts have them for other tables.
ORDER: Final = ("Namespace", "Node", "Service", "EndpointSlice", "Pod")

Form = dict[str, Any]


def scripts() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((TESTDATA / folder).glob("*.txtar"))]


def objects_of(archive: txtar.Archive) -> list[Form]:
    """The first version of each object, in an order in which a cluster takes them."""
    found: dict[tuple[str, str, str], Form] = {}
    for file in archive.files:
        if not file.name.endswith((".yaml", ".yml")):
            continue
        for document in read_yaml(file.content.encode()):
            form = document.form
            if isinstance(form, dict) and _is_wanted(form):
                meta = form["metadata"]
                key = (form["kind"], meta.get("namespace", ""), meta["name"])
                found.setdefault(key, form)
    return sorted(found.values(), key=lambda form: ORDER.index(form["kind"]))


def _is_wanted(form: Form) -> bool:
    known = (form.get("apiVersion"), form.get("kind")) in KINDS and form["kind"] in ORDER
    return known and "name" in (form.get("metadata") or {})


def flags_of(archive: txtar.Archive, tmp_path: Path) -> list[str]:
    first = archive.script.split("\n")[0]
    words = first.removeprefix("#!").split() if first.startswith("#!") else []
    flags = [word.replace("$WORK", str(tmp_path)) for word in words]
    return [flag for flag in flags if not flag.startswith("--lb-state-file")]


def completed(form: Form) -> Form:
    form = copy.deepcopy(form)
    for path in ("containers", "initContainers"):
        for container in form.get("spec", {}).get(path) or ():
            container.setdefault("image", "example.org/none")
    if form["kind"] == "Pod":
        form["spec"].setdefault("containers", [{"name": "main", "image": "example.org/none"}])
    return form


class Cluster:
    """The API server with what one script stored in it."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._stored: list[str] = []
        self.refused: dict[str, str] = {}

    def store(self, form: Form) -> Form | None:
        """The object as the script wrote it, if the API server takes it."""
        kind: type[K8sObject] = KINDS[form["apiVersion"], form["kind"]]
        meta = form["metadata"]
        collection = Resource(kind).path
        if kind.NAMESPACED:
            namespace = meta.setdefault("namespace", "default")
            self._server.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            before, _, resource = collection.rpartition("/")
            collection = f"{before}/namespaces/{namespace}/{resource}"
        written = completed(form)
        for managed in ("uid", "resourceVersion", "creationTimestamp"):
            written["metadata"].pop(managed, None)
        status, answer = self._server.request("POST", collection, written)
        if status >= 300:
            name = f"{form['kind']} {meta.get('namespace', '')}/{meta['name']}"
            self.refused[name] = json.loads(answer).get("message", str(status))
            return None
        path = f"{collection}/{meta['name']}"
        self._stored.append(path)
        if written.get("status"):
            self._server.patch(f"{path}/status", {"status": written["status"]})
        return form

    def clear(self) -> None:
        for path in reversed(self._stored):
            self._server.request("DELETE", f"{path}?gracePeriodSeconds=0")


def told(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without the API server's own Service, which no script has."""
    return [row for row in table if "default/kubernetes" not in str(row.values())]


Tables = dict[str, list[dict[str, str]]]


async def both(server: ApiServer, path: Path, directory: Path) -> tuple[Cluster, Tables, Tables]:
    """The tables from the objects as written and from the API server, and what this one refused."""
    archive = txtar.parse(path.read_bytes())
    config = parse_flags(flags_of(archive, directory))
    cluster = Cluster(server)
    try:
        stored = [form for form in objects_of(archive) if cluster.store(form) is not None]
        tracker = Tracker()
        for form in stored:
            tracker.add(yaml.safe_dump(form).encode())
        async with running_agent(config, tracker) as agent:
            written = {table: rows(agent, table) for table in TABLES}
        on_api = config.model_copy(update={"k8s_kubeconfig_path": server.kubeconfig})
        source = api_source(on_api)
        async with running_agent(on_api, source, source.run) as agent:
            read = {table: told(rows(agent, table)) for table in TABLES}
    finally:
        cluster.clear()
    return cluster, written, read


def compare(server: ApiServer, path: Path, directory: Path) -> bool:
    """Prints what differs and what was refused."""
    cluster, written, read = asyncio.run(both(server, path, directory))
    verdict = "same" if read == written else "DIFFERENT"
    counts = ", ".join(f"{len(read[table])} {table}" for table in TABLES)
    print(f"{path.parent.name}/{path.stem}: {verdict}: {counts}", flush=True)
    for name, reason in cluster.refused.items():
        print(f"  refused: {name}: {reason}")
    for table in TABLES:
        for row in written[table]:
            if row not in read[table]:
                print(f"  {table}: only from manifests: {row}")
        for row in read[table]:
            if row not in written[table]:
                print(f"  {table}: only from the API server: {row}")
    return read == written


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    wanted = set(sys.argv[1:])
    with tempfile.TemporaryDirectory() as directory, ApiServer(Path(directory)) as server:
        outcomes = [
            compare(server, path, Path(directory))
            for path in scripts()
            if not wanted or path.stem in wanted
        ]
    sys.exit(0 if all(outcomes) else 1)


if __name__ == "__main__":
    main()

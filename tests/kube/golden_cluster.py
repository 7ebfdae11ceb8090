# SPDX-License-Identifier: Apache-2.0
"""The objects of a golden script in a real API server, which defaults, allocates and refuses."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from typing import Any, Final

from cilia.cluster.access_options import open_writing_client
from cilia.k8s.objects import KINDS, K8sObject, ObjectKey
from cilia.k8s.resource import Resource
from cilia.k8s.tracker import resource_name
from cilia.operator.config import OperatorConfig
from cilia.operator.crds import register

from .apiserver import ApiServer, Settings
from .golden_steps import Form, Put, Remove, Replace, Step

# Kinds whose status is written by itself.
WITH_STATUS: Final = ("Service", "Pod", "Node")
# Addresses that the scripts give to Services; the API server takes no others.
SERVICE_CIDRS: Final = (("10.96.0.0/16", "fd00:96::/112"), ("fd00::/112",))
# What the API server says where an object must go before it can come back another one.
IMMUTABLE: Final = ("cannot be changed", "may not change once set", "field is immutable")
# Where the API server's own Service is, so that it takes none of these.
OWN_CIDRS: Final = "10.95.0.0/24,fd00:95::/112"


def settings() -> Settings:
    return Settings(service_cidrs=OWN_CIDRS)


def prepare(server: ApiServer) -> None:
    """Once a server: our kinds, and a range of addresses that admits those of the scripts."""

    async def kinds() -> None:
        config = OperatorConfig(k8s_kubeconfig_path=server.kubeconfig)
        async with open_writing_client(config) as client:
            await register(client)

    asyncio.run(kinds())
    for number, cidrs in enumerate(SERVICE_CIDRS):
        form = {"metadata": {"name": f"scripts-{number}"}, "spec": {"cidrs": cidrs}}
        server.post("/apis/networking.k8s.io/v1/servicecidrs", form)


def key_of(form: Form) -> ObjectKey:
    """As our models have it."""
    kind: type[K8sObject] = KINDS[form["apiVersion"], form["kind"]]
    namespace = form["metadata"].get("namespace") or "default"
    return (kind.KIND, namespace if kind.NAMESPACED else "", form["metadata"]["name"])


def name_of(key: ObjectKey) -> str:
    return " ".join((key[0], "/".join(filter(None, key[1:]))))


def completed(form: Form) -> Form:
    """With what every real object has and a script leaves out: images, the policy of families."""
    form = copy.deepcopy(form)
    if form["kind"] == "Pod":
        spec = form.setdefault("spec", {})
        spec.setdefault("containers", [{"name": "main"}])
        for container in (*spec["containers"], *(spec.get("initContainers") or ())):
            container.setdefault("image", "example.org/none")
    if form["kind"] == "Service" and len(form["spec"].get("clusterIPs") or ()) > 1:
        form["spec"].setdefault("ipFamilyPolicy", "RequireDualStack")
    for managed in ("uid", "resourceVersion", "creationTimestamp"):
        form["metadata"].pop(managed, None)
    return form


class Cluster:
    """What one script has in the API server. `clear` takes it out again."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        # As the server has them, in the order in which they came.
        self.stored: dict[ObjectKey, Form] = {}
        # Object and the server's reason, in words; how often.
        self.refused: Counter[str] = Counter()
        # Objects that had to be deleted to be changed.
        self.made_anew: Counter[str] = Counter()

    def put(self, form: Form) -> Form | None:
        """Makes or replaces an object; as it is stored, None if it is refused."""
        if (form.get("apiVersion"), form.get("kind")) not in KINDS:
            self.refused[f"{form.get('kind')}: is no kind that is read here"] += 1
            return None
        key, wanted = key_of(form), completed(form)
        there = self.stored.get(key)
        if there is None:
            self._namespace(key[1])
            status, answer = self._server.request("POST", self._collection(form), wanted)
        else:
            wanted["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
            status, answer = self._server.request("PUT", self._path(form), wanted)
            if status == 422 and any(text in answer.decode() for text in IMMUTABLE):
                self.made_anew[name_of(key)] += 1
                self.remove(key)
                return self.put(form)
        if status >= 300:
            self._refuse(key, answer)
            return None
        stored = json.loads(answer)
        if form["kind"] in WITH_STATUS and (form.get("status") or there):
            stored["status"] = form.get("status") or {}
            status, answer = self._server.request("PUT", f"{self._path(form)}/status", stored)
            if status >= 300:
                self._refuse(key, answer)
        self.stored[key] = self._server.get(self._path(form))
        return self.stored[key]

    def _refuse(self, key: ObjectKey, answer: bytes) -> None:
        why = json.loads(answer).get("message", answer.decode())
        self.refused[f"{name_of(key)}: {why}"] += 1

    def remove(self, key: ObjectKey) -> None:
        """Gone at once, or it was not there."""
        form = self.stored.pop(key, None)
        if form is not None:
            self._server.delete(f"{self._path(form)}?gracePeriodSeconds=0")

    def unwanted(self, step: Replace) -> list[tuple[ObjectKey, Form]]:
        """What a list that replaces a resource leaves out."""
        wanted = {key_of(form) for form in step.forms}
        kinds = {kind.KIND for kind in KINDS.values() if step.resource in resource_name(kind)}
        return [
            (key, form)
            for key, form in self.stored.items()
            if key[0] in kinds and key not in wanted
        ]

    def take(self, step: Step) -> None:
        match step:
            case Put():
                self.put(step.form)
            case Remove():
                self.remove(key_of(step.form))
            case Replace():
                for key, _ in self.unwanted(step):
                    self.remove(key)
                for form in step.forms:
                    self.put(form)

    def own(self) -> list[Form]:
        """The Service and the slices of the API server itself, which nobody can take away."""
        services = "/api/v1/namespaces/default/services/kubernetes"
        slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
        listed = self._server.get(slices)
        kind = {"apiVersion": listed["apiVersion"], "kind": "EndpointSlice"}
        return [self._server.get(services), *({**kind, **item} for item in listed["items"])]

    def clear(self) -> None:
        for key in reversed(list(self.stored)):
            self.remove(key)

    def _namespace(self, name: str) -> None:
        if name:
            self._server.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def _collection(self, form: Form) -> str:
        kind, namespace, _ = key_of(form)
        before, _, resource = Resource(KINDS[form["apiVersion"], kind]).path.rpartition("/")
        return (
            f"{before}/namespaces/{namespace}/{resource}" if namespace else f"{before}/{resource}"
        )

    def _path(self, form: Form) -> str:
        return f"{self._collection(form)}/{form['metadata']['name']}"


def changes(written: Form, stored: Form) -> list[str]:
    """What the API server made of the fields that we read, as `path: before -> after`."""
    model = KINDS[written["apiVersion"], written["kind"]]
    before, after = (
        model.model_validate(form).model_dump(by_alias=True, exclude={"metadata"})
        for form in (written, stored)
    )
    return list(_differences("", before, after))


def _differences(path: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = list(dict.fromkeys([*before, *after]))
        pairs = [(f"{path}.{n}" if path else n, before.get(n), after.get(n)) for n in names]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(f"{path}[{i}]", *both) for i, both in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [f"{path}: {before!r} -> {after!r}"]
    return [text for pair in pairs for text in _differences(*pair)]

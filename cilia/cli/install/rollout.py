# SPDX-License-Identifier: Apache-2.0
"""How far the installation is: of each part, pods wanted, up to date and ready, and what those that
are not ready say."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from cilia.k8s.client import Client
from cilia.k8s.errors import StatusError

__all__ = ["ALL", "Part", "Rollout", "read_rollout"]

NOT_FOUND = 404
# Name, collection, labels of its pods.
PARTS = (
    ("cilia", "daemonsets", "k8s-app=cilia"),
    ("cilia-operator", "deployments", "name=cilia-operator"),
)
ALL = tuple(name for name, _, _ in PARTS)


@dataclass(frozen=True)
class Part:
    name: str
    wanted: int
    updated: int
    ready: int
    present: bool = True
    # Its controller knows it as it is now: only then the numbers mean something.
    seen: bool = False

    @property
    def complete(self) -> bool:
        return self.seen and self.updated >= self.wanted and self.ready >= self.wanted


@dataclass(frozen=True)
class Rollout:
    parts: tuple[Part, ...]
    problems: tuple[str, ...]

    def complete(self, names: Collection[str] = ALL) -> bool:
        return all(part.complete for part in self.parts if part.name in names)

    def as_dict(self) -> dict[str, Any]:
        parts = [asdict(part) | {"complete": part.complete} for part in self.parts]
        return {"complete": self.complete(), "parts": parts, "problems": list(self.problems)}

    def lines(self) -> Iterator[str]:
        for part in self.parts:
            if part.present:
                said = f"{part.ready} of {part.wanted} ready, {part.updated} up to date"
            else:
                said = "is not installed"
            yield f"{part.name + ':':<16} {said}"
        yield from (f"  {problem}" for problem in self.problems)


async def read_rollout(client: Client, namespace: str) -> Rollout:
    parts = [await _part(client, namespace, name, kind) for name, kind, _ in PARTS]
    problems: list[str] = []
    for part, (_, _, labels) in zip(parts, PARTS, strict=True):
        if part.present and not part.complete:
            problems += await _problems(client, namespace, labels)
    return Rollout(tuple(parts), tuple(problems))


async def _part(client: Client, namespace: str, name: str, kind: str) -> Part:
    try:
        body = await client.fetch(f"/apis/apps/v1/namespaces/{namespace}/{kind}/{name}")
    except StatusError as error:
        if error.code == NOT_FOUND:
            return Part(name, 0, 0, 0, present=False)
        raise
    return part_of(json.loads(body))


def part_of(form: dict[str, Any]) -> Part:
    """From a DaemonSet or a Deployment; of one that changed since, nothing is up to date yet."""
    name, status = form["metadata"]["name"], form.get("status", {})
    seen = status.get("observedGeneration", 0) >= form["metadata"]["generation"]
    if form["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        updated, ready = status.get("updatedNumberScheduled", 0), status.get("numberReady", 0)
    else:
        wanted = form["spec"].get("replicas", 1)
        updated, ready = status.get("updatedReplicas", 0), status.get("readyReplicas", 0)
    return Part(name, wanted, updated if seen else 0, ready, seen=seen)


async def _problems(client: Client, namespace: str, labels: str) -> list[str]:
    query = urlencode({"labelSelector": labels})
    body = await client.fetch(f"/api/v1/namespaces/{namespace}/pods?{query}")
    return [said for pod in json.loads(body)["items"] for said in pod_problems(pod)]


def pod_problems(pod: dict[str, Any]) -> Iterator[str]:
    """What stands in the way of a pod: where it waits, or what its last container said."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    node = pod["spec"].get("nodeName", "")
    where = f"{name} on {node}" if node else name
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            yield f"{where}: {condition.get('message') or condition.get('reason', 'not scheduled')}"
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(key) or ():
            said = _said(container)
            if said:
                yield f"{where}, {container['name']}: {said}"


def _said(container: dict[str, Any]) -> str:
    waiting = container.get("state", {}).get("waiting")
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get(
        "terminated"
    )
    parts = []
    if waiting and waiting.get("reason") != "PodInitializing":
        parts.append(": ".join(filter(None, (waiting.get("reason"), waiting.get("message")))))
    if ended and ended.get("exitCode"):
        last = (ended.get("message") or "").strip().splitlines()[-3:]
        parts.append(" ".join([f"ended with {ended['exitCode']}", *last]))
    return "; ".join(parts)

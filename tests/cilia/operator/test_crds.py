# SPDX-License-Identifier: Apache-2.0
"""Kinds are made and raised, never lowered, never taken from somebody else."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from cilia.k8s.crds import DEFINITIONS, POD_NETWORK_DEFINITIONS
from cilia.k8s.crds.definitions import SCHEMA_LABEL, SCHEMA_NUMBER
from cilia.operator.config import OperatorConfig
from cilia.operator.crds import PATH, Action, ForeignKind, action, register
from cilia.operator.wiring import build

from .api import FakeApi

POLICY = DEFINITIONS[0]


def found(label: str | None, version: str = "v2") -> dict[str, Any]:
    labels = {} if label is None else {SCHEMA_LABEL: label}
    return {
        "metadata": {"name": POLICY.name, "labels": labels, "resourceVersion": "7"},
        "spec": {"versions": [{"name": version, "served": True}]},
    }


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (None, Action.MAKE),
        (found(str(SCHEMA_NUMBER - 1)), Action.RAISE),
        (found(str(SCHEMA_NUMBER)), Action.LEAVE),
        (found(str(SCHEMA_NUMBER + 1)), Action.LEAVE),
        (found(None), Action.LEAVE),
    ],
)
def test_what_is_done_follows_from_what_is_there(there: Any, expected: Action) -> None:
    assert action(POLICY, there) is expected


def test_a_kind_of_others_that_we_cannot_read_is_an_error() -> None:
    with pytest.raises(ForeignKind, match="serves v1, not v2"):
        action(POLICY, found(None, "v1"))


class Establishing(FakeApi):
    """Says that a kind is established only when it was asked for some times."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self.questions = questions

    async def fetch(self, path: str, query: Any = None) -> bytes:
        self.questions -= 1
        if self.questions <= 0 and path in self.objects:
            conditions = [{"type": "Established", "status": "True"}]
            self.objects[path]["status"] = {"conditions": conditions}
        return await super().fetch(path, query)


async def test_registration_ends_when_all_kinds_are_established() -> None:
    api = Establishing(questions=8)
    with anyio.fail_after(5):
        await register(api)
    assert api.questions <= 0
    assert api.sent == [("create", f"{PATH}/{kind.name}") for kind in DEFINITIONS]
    await register(api)
    assert len(api.sent) == len(DEFINITIONS), "nothing is written twice"


@pytest.mark.parametrize("pod_network", [True, False])
async def test_kinds_of_the_pod_network_are_registered_with_it(pod_network: bool) -> None:
    """A cluster of another pod network may have kinds of these names itself."""
    api = Establishing(questions=0)
    config = OperatorConfig(pod_network=pod_network)
    operator = build(config, api, "operator-1")
    assert operator.prepare is not None
    with anyio.fail_after(5):
        await operator.prepare()
    made = {path.removeprefix(f"{PATH}/") for path in api.objects}
    ours = {definition.name for definition in POD_NETWORK_DEFINITIONS}
    assert ours & made == (ours if pod_network else set())
    assert len(made) == len(DEFINITIONS) + pod_network * len(ours)


async def test_a_lower_schema_is_replaced_and_foreign_labels_stay() -> None:
    api = Establishing(questions=0)
    path = f"{PATH}/{POLICY.name}"
    api.objects[path] = found("0")
    api.objects[path]["metadata"]["labels"]["team"] = "net"
    await register(api, [POLICY])
    labels = api.objects[path]["metadata"]["labels"]
    assert labels == {SCHEMA_LABEL: str(SCHEMA_NUMBER), "team": "net"}
    assert api.objects[path]["spec"] == POLICY.manifest()["spec"]

# SPDX-License-Identifier: Apache-2.0
"""Registers our kinds at the API server: makes them, raises them, never lowers them.

    what is there                          what is done
    nothing                                made
    ours, a lower schema number            replaced, at the version that was read
    ours, the same number or a higher one  left
    somebody else's, serves our version    left
    somebody else's, does not              an error: nobody takes another's kind away

Returns when every kind is established, that is when its objects can be written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from typing import Any

import anyio
import structlog

from cilia.k8s.crds import DEFINITIONS, Definition
from cilia.k8s.crds.definitions import SCHEMA_LABEL, SCHEMA_NUMBER
from cilia.k8s.errors import StatusError
from cilia.k8s.object_writer import CONFLICT, NOT_FOUND, ObjectWriter

__all__ = ["Action", "ForeignKind", "action", "register"]

log = structlog.get_logger("operator")

PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# The API server establishes a kind within tens of ms; it is asked in growing steps up to this.
LONGEST_WAIT_S = 2.0


class ForeignKind(Exception):
    """A kind of this name is there and does not serve the version that we read."""


class Action(Enum):
    MAKE = "made"
    RAISE = "raised"
    LEAVE = "left as it is"


def action(definition: Definition, found: dict[str, Any] | None) -> Action:
    """What is to be done with what was found.

    Raises:
        ForeignKind: see the module.
    """
    if found is None:
        return Action.MAKE
    number = found["metadata"].get("labels", {}).get(SCHEMA_LABEL, "")
    if number.isdecimal():
        return Action.RAISE if int(number) < SCHEMA_NUMBER else Action.LEAVE
    served = [version["name"] for version in found["spec"]["versions"] if version["served"]]
    if definition.version not in served:
        raise ForeignKind(
            f"{definition.name} is somebody else's and serves {', '.join(served)}, not"
            f" {definition.version}"
        )
    return Action.LEAVE


def established(found: dict[str, Any]) -> bool:
    conditions = found.get("status", {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


async def register(api: ObjectWriter, definitions: Iterable[Definition] = DEFINITIONS) -> None:
    """Raises ForeignKind, and what the API says; to be tried again then."""
    for definition in definitions:
        done = await _registered(api, definition)
        log.info("kind", name=definition.name, schema=SCHEMA_NUMBER, action=done.value)
        await _established(api, definition)


async def _registered(api: ObjectWriter, definition: Definition) -> Action:
    """One that another writer changes meanwhile is read again."""
    while True:
        found = await _read(api, definition)
        todo = action(definition, found)
        try:
            if todo is Action.MAKE:
                await api.create(f"{PATH}/{definition.name}", definition.manifest())
            elif todo is Action.RAISE:
                assert found is not None, "what is raised is there"
                await api.replace(f"{PATH}/{definition.name}", _raised(definition, found))
        except StatusError as error:
            if error.code != CONFLICT:
                raise
        else:
            return todo


def _raised(definition: Definition, found: dict[str, Any]) -> dict[str, Any]:
    """Labels and annotations of others stay; so does the version, which the server compares."""
    manifest = definition.manifest()
    metadata = found["metadata"]
    labels = metadata.get("labels", {}) | manifest["metadata"]["labels"]
    return manifest | {"metadata": {**metadata, "labels": labels}}


async def _read(api: ObjectWriter, definition: Definition) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(await api.fetch(f"{PATH}/{definition.name}"))
    except StatusError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    return found


async def _established(api: ObjectWriter, definition: Definition) -> None:
    wait_s = 0.02
    while not ((found := await _read(api, definition)) and established(found)):
        await anyio.sleep(wait_s)  # a watch would cost more than these few questions
        wait_s = min(wait_s * 2, LONGEST_WAIT_S)

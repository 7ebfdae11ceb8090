# SPDX-License-Identifier: Apache-2.0
"""An API server in memory, as far as the operator knows one: versions, conflicts, failures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import anyio

from cilia.k8s.errors import ConnectionLost, StatusError


class FakeApi:
    """Objects by path. `away`: no request is answered. `silent`: requests wait for ever."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.sent: list[tuple[str, str]] = []
        self.away = self.silent = False
        self._versions = itertools.count(1)

    async def fetch(self, path: str, query: Mapping[str, str | int] | None = None) -> bytes:
        await self._answer()
        if path not in self.objects:
            raise StatusError(404, f"{path} not found")
        return json.dumps(self.objects[path]).encode()

    async def create(self, path: str, form: dict[str, Any]) -> dict[str, Any]:
        await self._answer()
        self.sent.append(("create", path))
        if path in self.objects:
            raise StatusError(409, "exists")
        return self._put(path, form)

    async def replace(self, path: str, form: dict[str, Any]) -> dict[str, Any]:
        await self._answer()
        self.sent.append(("replace", path))
        if path not in self.objects:
            raise StatusError(404, "not found")
        if form["metadata"].get("resourceVersion") != self.version(path):
            raise StatusError(409, "changed meanwhile")
        return self._put(path, form)

    async def delete(
        self, path: str, uid: str, options: dict[str, Any], version: str = ""
    ) -> dict[str, Any]:
        await self._answer()
        self.sent.append(("delete", path))
        if path not in self.objects:
            raise StatusError(404, "not found")
        if version not in ("", self.version(path)):
            raise StatusError(409, "changed meanwhile")
        return self.objects.pop(path)

    def _put(self, path: str, form: dict[str, Any]) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads(json.dumps(form))
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[path] = stored
        answer: dict[str, Any] = json.loads(json.dumps(stored))
        return answer

    def version(self, path: str) -> str:
        return str(self.objects[path]["metadata"]["resourceVersion"])

    async def _answer(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.silent:
            await anyio.sleep_forever()
        if self.away:
            raise ConnectionLost("away")

# SPDX-License-Identifier: Apache-2.0
"""CiliumIdentity objects, written one by one."""

from __future__ import annotations

from typing import Any

import msgspec

from cilia.identity.desired import Labels
from cilia.k8s.crds.identities import HEARTBEAT, CiliumIdentity, identity_form
from cilia.k8s.errors import Garbage, StatusError
from cilia.k8s.object_writer import CONFLICT, NOT_FOUND, Form, ObjectWriter, object_path

__all__ = ["IdentityObjects"]


class IdentityObjects:
    """Each method raises ApiError."""

    def __init__(self, writer: ObjectWriter) -> None:
        self._writer = writer

    async def create(self, number: int, labels: Labels) -> bool:
        """Make an object; return False if there is one of this number."""
        try:
            await self._writer.create(_path(number), identity_form(number, labels))
        except StatusError as failure:
            if failure.code == NOT_FOUND:
                raise StatusError(
                    NOT_FOUND,
                    "the API server does not know the kind CiliumIdentity: run `cilia operator"
                    " --pod-network`, which registers it",
                ) from None
            if failure.code != CONFLICT:
                raise
            return False
        return True

    async def has(self, number: int, labels: Labels) -> bool:
        """Return True if there is an object of this number with these labels."""
        try:
            form = await self._read(number)
        except StatusError as failure:
            if failure.code != NOT_FOUND:
                raise
            return False
        wanted = identity_form(number, labels)
        return bool(form.get("security-labels") == wanted["security-labels"])

    async def unmark(self, number: int) -> None:
        """Take away the mark by which an object is to be deleted."""
        form = await self._read(number)
        annotations = form["metadata"].get("annotations") or {}
        if annotations.pop(HEARTBEAT, None) is not None:
            await self._writer.replace(_path(number), form)

    async def _read(self, number: int) -> Form:
        data = await self._writer.fetch(_path(number))
        try:
            form = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as failure:
            reason = str(failure)
        else:
            return form
        raise Garbage(f"identity {number} is no object: {reason}")


def _path(number: int) -> str:
    return object_path(CiliumIdentity, str(number))

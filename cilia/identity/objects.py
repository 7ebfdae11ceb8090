# SPDX-License-Identifier: Apache-2.0
"""CiliumIdentity objects, written one by one."""

from __future__ import annotations

from cilia.identity.desired import Labels
from cilia.k8s.crds.identities import HEARTBEAT, CiliumIdentity, identity_form
from cilia.k8s.errors import StatusError
from cilia.k8s.object_writer import (
    CONFLICT,
    NOT_FOUND,
    Form,
    ObjectWriter,
    object_path,
    read_object,
    unregistered,
)

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
            code = failure.code
            if code not in (CONFLICT, NOT_FOUND):
                raise
        else:
            return True
        if code == NOT_FOUND:
            raise unregistered(CiliumIdentity)
        return False

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

    async def mark(self, number: int, mark: str) -> bool:
        """Mark an object as one that is to be deleted; return False if it is marked already."""
        form = await self._read(number)
        annotations = form["metadata"].get("annotations") or {}
        if HEARTBEAT in annotations:
            return False
        form["metadata"]["annotations"] = {**annotations, HEARTBEAT: mark}
        await self._writer.replace(_path(number), form)
        return True

    async def delete_marked(self, number: int) -> bool:
        """Delete an object; return False if its mark was taken away."""
        metadata = (await self._read(number))["metadata"]
        if HEARTBEAT not in (metadata.get("annotations") or {}):
            return False
        await self._writer.delete(
            _path(number), metadata["uid"], {}, version=metadata["resourceVersion"]
        )
        return True

    async def _read(self, number: int) -> Form:
        return await read_object(self._writer, _path(number))


def _path(number: int) -> str:
    return object_path(CiliumIdentity, str(number))

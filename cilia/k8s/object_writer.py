# SPDX-License-Identifier: Apache-2.0
"""Objects that programs of this project write and share, in an API server or in files.

`WritingClient` (`writing.py`) and `ObjectFiles` (`object_files.py`) are both writers: code that
writes objects runs over either.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import msgspec

from cilia.k8s.errors import Garbage, StatusError
from cilia.k8s.objects import K8sObject
from cilia.k8s.watch import Source

__all__ = [
    "CONFLICT",
    "NOT_FOUND",
    "Form",
    "ObjectWriter",
    "SharedObjects",
    "object_path",
    "read_object",
    "unregistered",
]

#: Codes of a `StatusError`.
NOT_FOUND: Final = 404
CONFLICT: Final = 409

#: An object in plain form.
Form = dict[str, Any]


class ObjectWriter(Protocol):
    """Single objects by their path in the API. Each method raises ApiError.

    A `StatusError` refuses, with the code of the API server: 404 there is none, 409 there is
    another one, or another version of it, 422 the object is wrong.
    """

    async def fetch(self, path: str) -> bytes:
        """Return the object as JSON."""

    async def create(self, path: str, form: Form) -> Form:
        """Make the object; 409 if the name is taken."""

    async def replace(self, path: str, form: Form) -> Form:
        """Write the object over the version that it names; 409 if that is not the last one."""

    async def delete(self, path: str, uid: str, options: Form, version: str = "") -> Form:
        """Delete the object with this uid, if it is of this version where one is named."""


class SharedObjects(NamedTuple):
    """Where such objects are read and written."""

    source: Source
    writer: ObjectWriter


def object_path(kind: type[K8sObject], name: str, namespace: str = "") -> str:
    """Return the path of an object in the API."""
    version = kind.API_VERSION
    within = f"namespaces/{namespace}/" if namespace else ""
    root = "apis" if "/" in version else "api"
    return f"/{root}/{version}/{within}{kind.RESOURCE}/{name}"


async def read_object(writer: ObjectWriter, path: str) -> Form:
    """Return an object in plain form. Raises: ApiError."""
    data = await writer.fetch(path)
    try:
        form: Form = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as failure:
        reason = str(failure)
    else:
        return form
    raise Garbage(f"{path} is no object: {reason}")


def unregistered(kind: type[K8sObject]) -> StatusError:
    """Return what an agent says when the API server answers 404 to the creation of an object."""
    return StatusError(
        NOT_FOUND,
        f"the API server does not know the kind {kind.KIND}: run `cilia operator --pod-network`,"
        " which registers it",
    )

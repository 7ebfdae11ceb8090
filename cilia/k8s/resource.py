# SPDX-License-Identifier: Apache-2.0
"""One resource of the API server as a client reads it: its path, its selectors, its bytes.

Lists and watch events are cut into objects without building them: what an object is called and its
version are read first, and only what changed is decoded into its model.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cilia.k8s.errors import Garbage
from cilia.k8s.objects import K8sObject, ObjectKey
from statedb.shown.text import shortened


class Resource(msgspec.Struct, frozen=True):
    """A kind, narrowed by selectors in the API server's syntax."""

    kind: type[K8sObject]
    label_selector: str = ""
    field_selector: str = ""

    @property
    def name(self) -> str:
        return self.kind.RESOURCE

    @property
    def list_kind(self) -> str:
        """What the server calls a list of these objects."""
        return f"{self.kind.KIND}List"

    @property
    def path(self) -> str:
        version = self.kind.API_VERSION
        return f"/{'apis' if '/' in version else 'api'}/{version}/{self.kind.RESOURCE}"

    @property
    def query(self) -> dict[str, str | int]:
        selectors = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {name: value for name, value in selectors.items() if value}

    def key(self, head: Head) -> ObjectKey:
        """Raises Garbage for an object of another kind."""
        if head.kind not in ("", self.kind.KIND, "PartialObjectMetadata"):
            raise Garbage(f"a {shortened(head.kind)} among {self.name}")
        return (self.kind.KIND, head.metadata.namespace, head.metadata.name)


class HeadMetadata(msgspec.Struct, rename="camel"):
    name: str
    resource_version: str
    namespace: str = ""


class Head(msgspec.Struct):
    """The little of an object that says which one it is; items of a list have no kind."""

    metadata: HeadMetadata
    kind: str = ""

    @property
    def version(self) -> int:
        return number(self.metadata.resource_version)


class ListMetadata(
    msgspec.Struct, rename={"resource_version": "resourceVersion", "next": "continue"}
):
    resource_version: str = ""
    # The token of the next page; empty on the last one.
    next: str = ""


class Page(msgspec.Struct):
    metadata: ListMetadata
    kind: str = ""
    items: list[msgspec.Raw] | None = None


class HeadPage(msgspec.Struct):
    metadata: ListMetadata
    kind: str = ""
    items: list[Head] | None = None


class WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _BookmarkMetadata(msgspec.Struct, rename="camel"):
    resource_version: str


class _Bookmark(msgspec.Struct):
    metadata: _BookmarkMetadata


class Failure(msgspec.Struct):
    """The `Status` of an ERROR event."""

    code: int = 0
    message: str = ""


PAGE: Final = msgspec.json.Decoder(Page)
HEAD_PAGE: Final = msgspec.json.Decoder(HeadPage)
HEAD: Final = msgspec.json.Decoder(Head)
WATCH_EVENT: Final = msgspec.json.Decoder(WatchEvent)
BOOKMARK: Final = msgspec.json.Decoder(_Bookmark)
FAILURE: Final = msgspec.json.Decoder(Failure)


MOST_DIGITS: Final = 20


def number(version: str) -> int:
    """A resource version as a number. Raises Garbage."""
    # Longer than any number of 64 bits: Python would refuse to convert some thousand digits.
    if not (version.isascii() and version.isdigit()) or len(version) > MOST_DIGITS:
        raise Garbage(f"{shortened(version)!r} is no resource version")
    return int(version)


def decoded(decoder: msgspec.json.Decoder[Any], data: bytes | msgspec.Raw) -> Any:
    """What the decoder makes of the bytes. Raises Garbage."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        shown = bytes(data)[:80].decode("utf-8", "replace")
        raise Garbage(f"{shortened(str(error))}: {shown!r}") from None

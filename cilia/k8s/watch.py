# SPDX-License-Identifier: Apache-2.0
"""The protocol between a source of Kubernetes objects and its readers: list, then watch.

A reader gets the objects that exist as ``Upsert``, then one ``Listed``, then changes for ever. When
the source has to list again (a watch expired, a resync) all objects come once more and a further
``Listed`` follows: what the reader holds and has not seen since the last ``Listed`` is gone.
``Invalid`` may come at any time and says that what was in force stays in force.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from cilia.k8s.objects import K8sObject, ObjectKey


class Upsert(msgspec.Struct, frozen=True, gc=False):
    obj: K8sObject


class Delete(msgspec.Struct, frozen=True, gc=False):
    key: ObjectKey


class Listed(msgspec.Struct, frozen=True, gc=False):
    """All that exists has been sent since the beginning or since the last ``Listed``."""


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One thing that is wrong, and where it stands. Documents of a file count from 1."""

    message: str
    file: str = ""
    document: int = 0
    kind: str = ""
    namespace: str = ""
    name: str = ""
    field: str = ""


class Invalid(msgspec.Struct, frozen=True, gc=False):
    """The problems of one origin (a file), in place of all that it had; empty: all is well."""

    origin: str
    problems: tuple[Problem, ...] = ()


Event = Upsert | Delete | Listed | Invalid


class Source(Protocol):
    """Where objects come from. Each call of ``watch`` is a reader of its own, from the start."""

    def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        """Batches of events of these kinds, in order; a batch is what was there when asked."""
        ...

# SPDX-License-Identifier: Apache-2.0
"""Models of kinds that we define: they keep fields that they do not know, so that they can be told.

A field that nobody reads is most often a known one, misspelt. It is no reason to refuse the object,
which may have been written for a later version; it is told with its path while it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from cilia.k8s.objects import K8sObject, Model

__all__ = ["UNKNOWN", "CustomModel", "CustomObject"]

UNKNOWN: Final = "is no field of this kind, and has no effect"
# What every object has beside the fields of its model.
_OF_EVERY_KIND: Final = frozenset(("apiVersion", "kind", "status"))


class CustomModel(Model):
    model_config = ConfigDict(extra="allow")


class CustomObject(K8sObject):
    model_config = ConfigDict(extra="allow")

    def unknown_fields(self) -> list[str]:
        """Paths of what was written and is not read, e.g. ``spec.redirectBackend.toPort``."""
        return [path for path in _unknown(self, "") if path not in _OF_EVERY_KIND]


def _unknown(model: BaseModel, path: str) -> Iterator[str]:
    for name in model.model_extra or ():
        yield f"{path}{name}"
    for name, field in type(model).model_fields.items():
        yield from _unknown_inside(getattr(model, name), f"{path}{field.alias or name}")


def _unknown_inside(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from _unknown(value, f"{path}.")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unknown_inside(item, f"{path}[{i}]")

# SPDX-License-Identifier: Apache-2.0
"""Judges by an object that was read if a write whose answer was lost was carried out; pure.

The API server adds fields to what it is given, defaults in lists too, and writes some values in
another way. What is taken for missing by mistake is written once more, which does no harm.
"""

from __future__ import annotations

from typing import Any, Final

Form = dict[str, Any]

# What the server writes with each change, in an object that was read and is written back.
OF_THE_SERVER: Final = ("resourceVersion", "managedFields", "generation")


def contains(found: Any, form: Any) -> bool:
    """True if an object has every field that a form names, and none that is None in it.

    >>> contains({"a": 1, "items": [{"b": 2, "default": 3}]}, {"items": [{"b": 2}], "c": None})
    True
    >>> contains({"items": [1, 2]}, {"items": [1]})
    False
    """
    match form:
        case dict():
            return isinstance(found, dict) and all(
                contains(found.get(name), value) for name, value in form.items()
            )
        case list():
            return (
                isinstance(found, list)
                and len(found) == len(form)
                and all(map(contains, found, form))
            )
    return bool(found == form)


def without_version(form: Form) -> Form:
    """Return an object without what the server writes with each change."""
    metadata = {
        name: value for name, value in form["metadata"].items() if name not in OF_THE_SERVER
    }
    return {**form, "metadata": metadata}


def is_deleted(uid: str, found: Form | None) -> Form | None:
    """Return an empty form if the object is gone, is going, or is another one of its name."""
    if found is None or found["metadata"].get("uid") != uid:
        return {}
    return found if found["metadata"].get("deletionTimestamp") else None

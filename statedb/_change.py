# SPDX-License-Identifier: Apache-2.0
"""One change of a table, in a module of its own because a msgspec struct is not compiled."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Change(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One object as it is now, or as it was last when `deleted`."""

    obj: T
    revision: int
    deleted: bool

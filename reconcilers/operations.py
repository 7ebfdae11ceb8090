# SPDX-License-Identifier: Apache-2.0
"""What a target of reconciliation must be able to do: three idempotent methods.

`Operations` is the whole obligation. `BatchOperations` and `VerifyOperations` are optional extras
which the engine looks for on the same object. The shape follows cilium/statedb's reconciler.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import msgspec

from statedb import ReadTxn

T = TypeVar("T")


class Refusal(Exception):
    """The target does not have the object, as it should be: no failure, and not tried again.

    The row says so, with this text, until somebody writes it as pending.
    """


class Operations(Protocol[T]):
    """Applies objects of one table to one target.

    Each method may be called again with the same arguments (after an error, a refresh or a
    restart) and must then lead to the same target. Each raises to say that it failed; the
    engine keeps the object and calls again later. `update` may raise Refusal.
    """

    def update(self, txn: ReadTxn, revision: int, obj: T) -> T | None:
        """Make the target show `obj`.

        Returns None, or the object with what was learned (ids that were allocated); the engine
        stores it together with the status, unless the row has changed meanwhile.
        """
        ...

    def delete(self, txn: ReadTxn, revision: int, obj: T) -> None:
        """Remove `obj`, the last version of a deleted row, from the target; absent is success."""
        ...

    def prune(self, txn: ReadTxn, objects: Iterable[T]) -> None:
        """Remove from the target what belongs to none of `objects`, which is the whole table.

        Called only when the table is initialised and every change up to `txn` was attempted.
        Objects whose last attempt failed are among `objects`: theirs must stay.
        """
        ...


class Entry(msgspec.Struct, Generic[T]):
    """One object of a batch; the batch operation sets `error`, or `result` to the learned object.

    With `deleted`, `obj` is the last version of a deleted row.
    """

    obj: T
    revision: int
    deleted: bool = False
    status_id: int = 0
    result: T | None = None
    error: Exception | None = None


@runtime_checkable
class BatchOperations(Protocol[T]):
    """Whole rounds at once; a batch holds consecutive entries of one kind, in revision order.

    If a batch operation raises, the engine calls it again with each entry alone, so that one
    poisonous object does not hold up the others.
    """

    def update_batch(self, txn: ReadTxn, entries: Sequence[Entry[T]]) -> None: ...

    def delete_batch(self, txn: ReadTxn, entries: Sequence[Entry[T]]) -> None: ...


@runtime_checkable
class VerifyOperations(Protocol[T]):
    """Reading the target back, for comparison with the table.

    `actual` and `expected` speak of the same keys, which are hashable, and of values that are
    compared by `==`.
    """

    def actual(self) -> Mapping[Any, Any]:
        """All that the target holds now, read from it and from no cache.

        The operations drop what they believed before: the next update writes where this differs.
        """
        ...

    def expected(self, txn: ReadTxn, objects: Iterable[T]) -> Iterable[tuple[Any, Any, T]]:
        """What the target should hold for `objects`: key, value and the object that wants it."""
        ...

    def describe(self, key: Any, value: Any | None) -> tuple[str, str]:
        """Key and value as text for people; value None (absent) is the empty text."""
        ...

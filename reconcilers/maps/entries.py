# SPDX-License-Identifier: Apache-2.0
"""Operations over BPF maps of which each row of a table is one entry: one map, or one a family.

For maps whose entries stand alone; those that refer to each other have operations of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from bpf.errors import MapFull, NotFound
from bpf.maps.raw import RawMap
from reconcilers.maps.staged import NoRoomError
from statedb import ReadTxn

__all__ = ["MapEntries"]

T = TypeVar("T")


class MapEntries(Generic[T]):
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(
        self,
        *raws: RawMap,
        key: Callable[[T], bytes],
        value: Callable[[T], bytes],
        text: Callable[[bytes], str] = bytes.hex,
        of: Callable[[bytes], RawMap] | None = None,
    ) -> None:
        """`key` and `value` encode a row; `text` shows a key to people; `of` says which of several
        maps has a key.
        """
        self._raws = raws
        self._of = of or (lambda _: raws[0])
        self._key = key
        self._value = value
        self._text = text

    def update(self, txn: ReadTxn, revision: int, obj: T) -> T | None:
        """Raises: NoRoomError; what is in force of the row stays."""
        key = self._key(obj)
        raw = self._of(key)
        try:
            raw.update(key, self._value(obj))
        except MapFull:
            raise NoRoomError(raw) from None
        return None

    def delete(self, txn: ReadTxn, revision: int, obj: T) -> None:
        key = self._key(obj)
        try:
            self._of(key).delete(key)
        except NotFound:
            return  # which is what was wanted

    def prune(self, txn: ReadTxn, objects: Iterable[T]) -> None:
        keep = {self._key(obj) for obj in objects}
        for raw in self._raws:
            raw.delete_batch([key for key, _ in raw.items() if key not in keep])

    def actual(self) -> Mapping[bytes, bytes]:
        return {key: value for raw in self._raws for key, value in raw.items()}

    def expected(self, txn: ReadTxn, objects: Iterable[T]) -> Iterable[tuple[bytes, bytes, T]]:
        for obj in objects:
            yield self._key(obj), self._value(obj), obj

    def describe(self, key: bytes, value: bytes | None) -> tuple[str, str]:
        return self._text(key), "" if value is None else value.hex()

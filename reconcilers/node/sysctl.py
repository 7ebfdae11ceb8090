# SPDX-License-Identifier: Apache-2.0
"""`sysctl` into /proc/sys, which announces nothing: drift is found by reading back at intervals."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from cilia.linux.sysctl import Sysctl
from statedb import DB, ReadTxn, Table
from tables.node.sysctl import SysctlSetting

__all__ = ["SysctlOperations"]


class SysctlOperations:
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(self, db: DB, sysctl: Sysctl, desired: Table[SysctlSetting]) -> None:
        self._db = db
        self._sysctl = sysctl
        self._desired = desired

    def update(self, txn: ReadTxn, revision: int, obj: SysctlSetting) -> None:
        try:
            if _words(self._sysctl.read(obj.name)) != _words(obj.value):
                self._sysctl.write(obj.name, obj.value)
        except FileNotFoundError as error:
            if not obj.optional:
                raise FileNotFoundError(f"this kernel has no parameter {obj.name}") from error

    def delete(self, txn: ReadTxn, revision: int, obj: SysctlSetting) -> None:
        """Leaves the parameter: what it was before is nobody's to know."""

    def prune(self, txn: ReadTxn, objects: Iterable[SysctlSetting]) -> None:
        """Nothing to do: every parameter always has a value."""

    def actual(self) -> Mapping[Hashable, Any]:
        found: dict[Hashable, Any] = {}
        for obj in self._desired.all(self._db.read_txn()):
            try:
                found[obj.name] = _words(self._sysctl.read(obj.name))
            except FileNotFoundError:
                if obj.optional:
                    found[obj.name] = _words(obj.value)
        return found

    def expected(
        self, txn: ReadTxn, objects: Iterable[SysctlSetting]
    ) -> Iterable[tuple[Hashable, Any, SysctlSetting]]:
        for obj in objects:
            yield obj.name, _words(obj.value), obj

    def describe(self, key: Hashable, value: Any | None) -> tuple[str, str]:
        return str(key), "" if value is None else str(value)


def _words(value: str) -> str:
    """Several numbers in one parameter are written with blanks and read with tabs."""
    return " ".join(value.split())

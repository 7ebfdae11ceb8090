# SPDX-License-Identifier: Apache-2.0
"""Writes of Maglev tables: made when they are written, remembered by their marks."""

from collections.abc import Iterable

from bpf.errors import KernelError
from reconcilers.loadbalancer.maglev import Recipe, mark_of
from reconcilers.maps.staged import StagedMap

# The largest table has half a megabyte.
TABLES_AT_A_TIME = 64


class StagedTables(StagedMap):
    """A map of Maglev tables; `content` and `wanted` have their marks, which stand for them.

    A value that is put is a `Recipe`: the table is made when it is written.
    """

    def write(self, keys: Iterable[bytes]) -> dict[bytes, KernelError]:
        failed = super().write(keys)
        for key in keys:  # the members need not be kept
            if key in self.content:
                self.content[key] = bytes(self.content[key])
        return failed

    def _read(self) -> dict[bytes, bytes]:
        return {key: mark_of(table) for key, table in self.raw.items()}

    def _write(
        self, keys: list[bytes], values: list[bytes], failed: dict[bytes, KernelError]
    ) -> None:
        for start in range(0, len(keys), TABLES_AT_A_TIME):
            chunk = slice(start, start + TABLES_AT_A_TIME)
            tables = [recipe.table() for recipe in values[chunk] if isinstance(recipe, Recipe)]
            super()._write(keys[chunk], tables, failed)

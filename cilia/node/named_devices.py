# SPDX-License-Identifier: Apache-2.0
"""Devices that `--devices` names and that serve nothing: missing, down, or without an address.

A name that is misspelt, or of a device that is gone, leaves the node without programs of packets.
That is degraded, and gets well by itself when the device comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cilia.node.device_selection import DeviceFilter
from statedb import DB, Channel, ReadTxn, Table, wait_initialized
from tables.node.devices import Device, names

__all__ = ["NamedDevices", "missing"]


class NamedDevices:
    """One task calls `run`. `tell` is given "is all well" and a sentence."""

    def __init__(
        self,
        db: DB,
        devices: Table[Device],
        patterns: DeviceFilter,
        tell: Callable[[bool, str], None],
    ) -> None:
        self._db, self._devices, self._patterns, self._tell = db, devices, patterns, tell

    async def run(self) -> None:
        """Follow the table of devices for ever."""
        await wait_initialized(self._db, self._devices)
        while True:
            await self._db.look(self._look).wait()

    def _look(self, txn: ReadTxn) -> Channel:
        rows, changed = self._devices.all_watch(txn)
        found = list(rows)
        lacking = list(missing(found, self._patterns))
        if lacking:
            self._tell(
                False, f"no program of packets runs where --devices says: {'; '.join(lacking)}"
            )
        else:
            self._tell(True, f"{sum(dev.selected for dev in found)} device(s) face other nodes")
        return changed


def missing(devices: Iterable[Device], patterns: DeviceFilter) -> Iterator[str]:
    """Say of each pattern that stands for no selected device why that is."""
    found = list(devices)
    excluded = [pattern for pattern in patterns.patterns if pattern.startswith("!")]
    for pattern in patterns.patterns:
        if pattern in excluded:
            continue
        one = DeviceFilter((pattern, *excluded))
        matching = [dev for dev in found if one.matches(names(dev))]
        if not matching:
            yield f"there is no device {pattern}"
        elif not any(dev.selected for dev in matching):
            dev = matching[0]
            yield f"{dev.name}: {dev.not_selected_reason}"

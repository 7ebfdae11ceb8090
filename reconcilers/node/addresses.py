# SPDX-License-Identifier: Apache-2.0
"""`desired-addresses` onto the devices of the node.

Our addresses carry our protocol number (IFA_PROTO, since Linux 5.18); no other is removed. An
address that someone else gave the device is as good as ours while it is there.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from cilia.linux.errors import NetlinkError, NoDevice
from cilia.linux.netlink import Netlink
from cilia.linux.requests import IFA_F_DEPRECATED, add_address, delete_address
from cilia.linux.rtnl import AddressMessage
from reconcilers.kernel_watch import Concerns
from statedb import Change, ReadTxn, Table
from tables.addressing import IP
from tables.node.desired_addresses import ADDRESS, DEVICE, AddressKey, DesiredAddress, kernel_key
from tables.node.desired_routes import PROTOCOL_CILIA
from tables.node.devices import Device, device_by_name
from tables.node.routes import scope_text

__all__ = ["AddressOperations", "concerns_addresses"]

# An address that we give out is nobody else's: it is usable at once, without asking the link.
IFA_F_NODAD = 0x02


class AddressOperations:
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(
        self, netlink: Netlink, devices: Table[Device], desired: Table[DesiredAddress]
    ) -> None:
        self._netlink = netlink
        self._devices = devices
        self._desired = desired
        # Of the last read-back: what is there without being ours.
        self._foreign: set[AddressKey] = set()

    def update(self, txn: ReadTxn, revision: int, obj: DesiredAddress) -> None:
        dev = device_by_name(self._devices, txn, obj.device)
        if dev is None:
            raise NoDevice(obj.device)
        try:
            self._netlink.request(add_address(_message(obj, dev.index)))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    def delete(self, txn: ReadTxn, revision: int, obj: DesiredAddress) -> None:
        if self._desired.list(txn, kernel_key(obj), ADDRESS):
            return  # another owner wants it
        self._remove({kernel_key(obj)})

    def prune(self, txn: ReadTxn, objects: Iterable[DesiredAddress]) -> None:
        keep = {kernel_key(obj) for obj in objects}
        self._remove({key for key, row in self._read().items() if _is_ours(row)} - keep)

    def _remove(self, keys: set[AddressKey]) -> None:
        for key, row in self._read().items():
            if key in keys and _is_ours(row):
                try:
                    self._netlink.request(delete_address(row))
                except NetlinkError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                        raise

    def _read(self) -> dict[AddressKey, AddressMessage]:
        """All addresses of the node by the first name of their device."""
        names = {link.index: link.name for link in self._netlink.links()}
        return {
            (names[row.index], IP.from_packed(row.address), row.prefix_len): row
            for row in self._netlink.addresses()
            if row.index in names
        }

    # Verify

    def actual(self) -> Mapping[Hashable, Any]:
        found = self._read()
        self._foreign = {key for key, row in found.items() if not _is_ours(row)}
        return {key: row.scope for key, row in found.items() if _is_ours(row)}

    def expected(
        self, txn: ReadTxn, objects: Iterable[DesiredAddress]
    ) -> Iterable[tuple[Hashable, Any, DesiredAddress]]:
        for obj in objects:
            dev = device_by_name(self._devices, txn, obj.device)
            key = (dev.name if dev else obj.device, obj.address, obj.prefix_len)
            if key not in self._foreign:
                yield key, obj.scope, obj

    def describe(self, key: Hashable, value: Any | None) -> tuple[str, str]:
        assert isinstance(key, tuple)
        device, address, prefix_len = key
        name = f"{address}/{prefix_len} dev {device}"
        return name, "" if value is None else f"scope {scope_text(value)}"


def concerns_addresses(desired: Table[DesiredAddress]) -> Concerns[Device]:
    """Which changes of the table `devices` may be drift of an address."""

    def concerns(txn: ReadTxn, change: Change[Device]) -> bool:
        dev = change.obj
        there = {(a.address, a.prefix_len) for a in dev.addresses}
        return any(
            change.deleted or (row.address, row.prefix_len) not in there
            for name in (dev.name, *dev.alternative_names)
            for row in desired.list(txn, name, DEVICE)
        )

    return concerns


def _is_ours(row: AddressMessage) -> bool:
    return row.protocol == PROTOCOL_CILIA


def _message(row: DesiredAddress, index: int) -> AddressMessage:
    flags = IFA_F_NODAD if row.address.is_ipv6 else 0
    if row.deprecated:
        flags |= IFA_F_DEPRECATED
    return AddressMessage(
        deleted=False,
        index=index,
        address=row.address.packed,
        prefix_len=row.prefix_len,
        scope=row.scope,
        flags=flags,
        protocol=PROTOCOL_CILIA,
    )

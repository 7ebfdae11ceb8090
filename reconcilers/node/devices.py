# SPDX-License-Identifier: Apache-2.0
"""`desired-devices` into the kernel: veth pairs and VXLAN devices.

Our devices carry our group number, which is set by the very request that makes them: there is no
moment at which a device of ours could not be told from someone else's, and nothing to keep in a
file. A device of that name without the number is never touched.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final

import msgspec

from cilia.linux.errors import NetlinkError, NotOurs
from cilia.linux.netlink import Netlink, Request
from cilia.linux.requests import create_veth, create_vxlan, delete_link, set_link
from cilia.linux.rtnl import LinkMessage, attributes
from reconcilers.kernel_watch import Concerns
from statedb import Change, ReadTxn, Table
from tables.node.desired_devices import NAME, DesiredDevice, VethSpec, VxlanSpec
from tables.node.devices import IFF_UP, Device

__all__ = ["GROUP_CILIA", "DeviceOperations", "concerns_devices"]

# IFLA_GROUP: any number but 0 will do; this one is "CIL" in ASCII.
GROUP_CILIA: Final = 0x43494C

_VXLAN_ID, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_EXTERNAL = 1, 7, 15, 25


class LinkState(msgspec.Struct, frozen=True):
    """What is compared: `fixed` can only be had by making the device anew."""

    fixed: tuple[Any, ...]
    mtu: int
    hardware_address: bytes
    up: bool

    def __str__(self) -> str:
        address = f" {self.hardware_address.hex(':')}" if self.hardware_address else ""
        kind = " ".join(map(str, self.fixed))
        return f"{kind} mtu {self.mtu}{address} {'up' if self.up else 'down'}"


class DeviceOperations:
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(self, netlink: Netlink, desired: Table[DesiredDevice]) -> None:
        self._netlink = netlink
        self._desired = desired
        # Of the last read-back: stands in for what a row leaves to the kernel.
        self._actual: dict[str, LinkState] = {}

    def update(self, txn: ReadTxn, revision: int, obj: DesiredDevice) -> DesiredDevice | None:
        link = self._netlink.link(obj.name)
        if link is not None and link.group != GROUP_CILIA:
            raise NotOurs(f"a device {obj.name} is there already, made by someone else")
        if link is not None:
            have, want = _state(link), _wanted(obj, _state(link))
            if have.fixed != want.fixed:
                self._delete(link)
                link = None
            elif have != want:
                self._netlink.request(_changed(link.index, have, want))
        if link is None:
            self._netlink.request(_create(obj))
            link = self._netlink.link(obj.name)
        if obj.up and isinstance(obj.spec, VethSpec):
            self._open_peer(obj.spec.peer)
        if link is None or link.index == obj.index:
            return None
        return msgspec.structs.replace(obj, index=link.index)

    def _open_peer(self, name: str) -> None:
        peer = self._netlink.link(name)
        if peer is not None and not peer.flags & IFF_UP:
            self._netlink.request(set_link(peer.index, up=True))

    def delete(self, txn: ReadTxn, revision: int, obj: DesiredDevice) -> None:
        if self._desired.list(txn, obj.name, NAME):
            return  # another owner wants one of this name
        link = self._netlink.link(obj.name)
        if link is not None and link.group == GROUP_CILIA:
            self._delete(link)

    def prune(self, txn: ReadTxn, objects: Iterable[DesiredDevice]) -> None:
        keep = {obj.name for obj in objects}
        for link in self._ours():
            if link.name not in keep:
                self._delete(link)

    def _ours(self) -> list[LinkMessage]:
        return [link for link in self._netlink.links() if link.group == GROUP_CILIA]

    def _delete(self, link: LinkMessage) -> None:
        try:
            self._netlink.request(delete_link(link.index))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise

    # Verify

    def actual(self) -> Mapping[Hashable, Any]:
        self._actual = {link.name: _state(link) for link in self._ours()}
        found: dict[Hashable, Any] = dict(self._actual.items())
        return found

    def expected(
        self, txn: ReadTxn, objects: Iterable[DesiredDevice]
    ) -> Iterable[tuple[Hashable, Any, DesiredDevice]]:
        for obj in objects:
            yield obj.name, _wanted(obj, self._actual.get(obj.name)), obj

    def describe(self, key: Hashable, value: Any | None) -> tuple[str, str]:
        return str(key), "" if value is None else str(value)


def concerns_devices(desired: Table[DesiredDevice]) -> Concerns[Device]:
    """Which changes of the table `devices` may be drift of a device that we want."""

    def concerns(txn: ReadTxn, change: Change[Device]) -> bool:
        dev = change.obj
        return any(
            change.deleted
            or dev.index != row.index
            or dev.is_up != row.up
            or (row.mtu and dev.mtu != row.mtu)
            or (row.hardware_address and dev.hardware_address != row.hardware_address)
            for row in desired.list(txn, dev.name, NAME)
        )

    return concerns


def _state(link: LinkMessage) -> LinkState:
    fixed: tuple[Any, ...] = (link.kind,)
    if link.kind == "vxlan":
        info = attributes(link.info)
        external = info.get(_VXLAN_EXTERNAL, b"\0") != b"\0"
        vni = 0 if external else _number(info.get(_VXLAN_ID, b""))
        port = int.from_bytes(info.get(_VXLAN_PORT, b""), "big")
        learning = info.get(_VXLAN_LEARNING, b"\0") != b"\0"
        fixed = ("vxlan", port, external, vni, learning)
    return LinkState(fixed, link.mtu, link.hardware_address, link.flags & IFF_UP != 0)


def _number(value: bytes) -> int:
    return int.from_bytes(value, "little")


def _wanted(obj: DesiredDevice, have: LinkState | None) -> LinkState:
    """The state that a row asks for; what it leaves open is as it is."""
    match obj.spec:
        case VethSpec():
            fixed: tuple[Any, ...] = ("veth",)
        case VxlanSpec(port, external, vni, learning):
            fixed = ("vxlan", port, external, 0 if external else vni, learning)
    mtu = obj.mtu or (have.mtu if have else 0)
    address = obj.hardware_address or (have.hardware_address if have else b"")
    return LinkState(fixed, mtu, address, obj.up)


def _create(obj: DesiredDevice) -> Request:
    match obj.spec:
        case VethSpec(peer):
            return create_veth(
                obj.name,
                peer,
                group=GROUP_CILIA,
                mtu=obj.mtu,
                hardware_address=obj.hardware_address,
                up=obj.up,
            )
        case VxlanSpec(port, external, vni, learning):
            return create_vxlan(
                obj.name,
                group=GROUP_CILIA,
                port=port,
                vni=None if external else vni,
                learning=learning,
                mtu=obj.mtu,
                hardware_address=obj.hardware_address,
                up=obj.up,
            )


def _changed(index: int, have: LinkState, want: LinkState) -> Request:
    return set_link(
        index,
        mtu=want.mtu if want.mtu != have.mtu else 0,
        hardware_address=(
            want.hardware_address if want.hardware_address != have.hardware_address else b""
        ),
        up=want.up if want.up != have.up else None,
    )

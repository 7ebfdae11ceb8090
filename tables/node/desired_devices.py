# SPDX-License-Identifier: Apache-2.0
"""``desired-devices``: the network devices that this node is to have and that we make.

`reconcilers/node/devices.py` makes them and writes back ``status`` and ``index``. A device
that someone else made is never touched, whatever its name.
"""

from __future__ import annotations

from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "desired-devices"

NAME_MAX: Final = 15
VXLAN_PORT_DEFAULT: Final = 8472  # Linux's own; IANA's is 4789


class VethSpec(msgspec.Struct, frozen=True, tag="veth"):
    """A pair of devices, both in this namespace."""

    peer: str


class VxlanSpec(msgspec.Struct, frozen=True, tag="vxlan"):
    """One device for all remote nodes: the program in front of it says where a packet goes.

    Without ``external`` it is a tunnel with the one identifier ``vni``.
    """

    port: int = VXLAN_PORT_DEFAULT
    external: bool = True
    vni: int = 0
    learning: bool = False


DeviceSpec = VethSpec | VxlanSpec


class DesiredDevice(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    name: str
    spec: DeviceSpec
    mtu: int = 0  # 0: the kernel's default
    hardware_address: bytes = b""  # empty: the kernel's choice
    up: bool = True
    # Written by the reconciler: the device's index; 0: not made yet.
    index: int = 0
    status: Status = msgspec.field(default_factory=pending)


def check(dev: DesiredDevice) -> None:
    """Raises ValueError for a row that no kernel could take, with the field's name."""
    if not dev.owner:
        raise ValueError("owner: a device must have one")
    names = [dev.name, dev.spec.peer] if isinstance(dev.spec, VethSpec) else [dev.name]
    for name in names:
        if not 0 < len(name) <= NAME_MAX or "/" in name or any(map(str.isspace, name)):
            raise ValueError(f"name: {name!r} is no name of a device")
    if len(dev.hardware_address) not in (0, 6):
        raise ValueError("hardware_address: must have 6 bytes")


def properties_text(dev: DesiredDevice) -> str:
    """``Type=veth, Peer=v1, MTU=1450``."""
    match dev.spec:
        case VethSpec(peer):
            found = ["Type=veth", f"Peer={peer}"]
        case VxlanSpec(port, external, vni):
            kind = "External=true" if external else f"VNI={vni}"
            found = ["Type=vxlan", kind, f"Port={port}"]
    if dev.mtu:
        found.append(f"MTU={dev.mtu}")
    if dev.hardware_address:
        found.append(f"HWAddr={dev.hardware_address.hex(':')}")
    return ", ".join(found)


def _key(dev: DesiredDevice) -> tuple[str, str]:
    return (dev.owner, dev.name)


def _name(dev: DesiredDevice) -> str:
    return dev.name


def _parse_key(text: str) -> tuple[str, str] | tuple[str]:
    """``OWNER[/NAME]``."""
    owner, _, name = text.partition("/")
    return (owner, name) if name else (owner,)


ID: Final = Index("id", key=_key, parse=_parse_key)
NAME: Final = Index("name", key=_name, unique=False, parse=str)

COLUMNS: Final = (
    Column("Owner", lambda dev: dev.owner),
    Column("Name", lambda dev: dev.name),
    Column("Properties", properties_text),
    *STATUS_COLUMNS,
)


def new_desired_devices_table(db: DB) -> RWTable[DesiredDevice]:
    """Registers ``desired-devices`` with the database."""
    return new_table(db, TABLE_NAME, ID, NAME, columns=COLUMNS, row_type=DesiredDevice)

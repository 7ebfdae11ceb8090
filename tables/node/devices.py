# SPDX-License-Identifier: Apache-2.0
"""``devices``: the network devices of the node with their addresses, as the kernel has them.

The reflector of devices alone writes the rows. *Selected* are the devices that face other nodes:
the datapath attaches to them and load balancing answers on their addresses.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, ReadTxn, RWTable, Table, new_table
from statedb.index import parse_bool
from tables.addressing import IP
from tables.node.routes import RouteScope

TABLE_NAME: Final = "devices"

#: Group of the node's ends of our pods' devices: "CIE" in ASCII, for cilia and endpoint.
GROUP_ENDPOINT: Final = 0x434945
#: Of a device that another plugin made, and whose workload is an endpoint of ours.
GROUP_CHAINED: Final = 0x434946

IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_SLAVE: Final = 0x800

# Printed in the order and with the names of Go's net.Flags; IFF_RUNNING is not among them.
_FLAGS: Final = (
    (0x1, "up"),
    (0x2, "broadcast"),
    (0x8, "loopback"),
    (0x10, "pointtopoint"),
    (0x1000, "multicast"),
)
_OPER_STATES: Final = (
    "unknown",
    "not-present",
    "down",
    "lower-layer-down",
    "testing",
    "dormant",
    "up",
)


class DeviceAddress(msgspec.Struct, frozen=True, gc=False):
    address: IP
    prefix_len: int
    scope: int = RouteScope.UNIVERSE
    # IPv4: another address of the same subnet was there first. IPv6: temporary (RFC 8981).
    secondary: bool = False


class Device(msgspec.Struct, frozen=True, gc=False):
    index: int
    name: str
    alternative_names: tuple[str, ...] = ()
    # The kind of a virtual device ("veth", "vxlan", "bridge"), else "device".
    type: str = "device"
    mtu: int = 0
    hardware_address: bytes = b""
    flags: int = 0  # IFF_*
    master_index: int = 0  # the bridge or bond it is a port of; 0: none
    peer_index: int = 0  # the other end of a veth, in whatever namespace; 0: none
    oper_state: int = 0  # IF_OPER_*
    group: int = 0  # a number that a device is made with
    # IPv4 first, by address: the kernel's own order differs between events and dumps.
    addresses: tuple[DeviceAddress, ...] = ()
    # Decided by the reflector from all of the above, the routes and the configured patterns.
    selected: bool = False
    not_selected_reason: str = ""

    @property
    def is_up(self) -> bool:
        return self.flags & IFF_UP != 0

    @property
    def mac(self) -> str:
        return mac_text(self.hardware_address)


def mac_text(address: bytes) -> str:
    """Six (or any number of) bytes as ``02:00:00:00:00:01``."""
    return address.hex(":")


def flags_text(flags: int) -> str:
    """``up|broadcast|multicast``; ``0`` if none of the named flags is set."""
    return "|".join(name for bit, name in _FLAGS if flags & bit) or "0"


def oper_state_text(state: int) -> str:
    return _OPER_STATES[state] if state < len(_OPER_STATES) else str(state)


def _name_cell(dev: Device) -> str:
    if not dev.alternative_names:
        return dev.name
    return f"{dev.name} ({', '.join(dev.alternative_names)})"


def to_json(dev: Device) -> dict[str, Any]:
    return {
        "Index": dev.index,
        "MTU": dev.mtu,
        "Name": dev.name,
        "AltNames": list(dev.alternative_names),
        "HardwareAddr": dev.mac,
        "Flags": flags_text(dev.flags),
        "Addrs": [
            {"Addr": str(a.address), "Secondary": a.secondary, "Scope": a.scope}
            for a in dev.addresses
        ],
        "RawFlags": dev.flags,
        "Type": dev.type,
        "MasterIndex": dev.master_index,
        "Selected": dev.selected,
        "NotSelectedReason": dev.not_selected_reason,
        "OperStatus": oper_state_text(dev.oper_state),
    }


def _index(dev: Device) -> int:
    return dev.index


def names(dev: Device) -> tuple[str, ...]:
    """Return all names under which the kernel knows the device."""
    return (dev.name, *dev.alternative_names)


def _selected(dev: Device) -> bool:
    return dev.selected


ID: Final = Index("id", key=_index, parse=int)
# Not unique: a name may pass from one device to another within one batch of events.
NAME: Final = Index("name", keys=names, unique=False, parse=str)
SELECTED: Final = Index("selected", key=_selected, unique=False, parse=parse_bool)

COLUMNS: Final = (
    Column("Name", _name_cell),
    Column("Index", lambda dev: str(dev.index)),
    Column("Selected", lambda dev: str(dev.selected).lower()),
    Column("Type", lambda dev: dev.type),
    Column("MTU", lambda dev: str(dev.mtu)),
    Column("HWAddr", lambda dev: dev.mac),
    Column("Flags", lambda dev: flags_text(dev.flags)),
    Column("Addresses", lambda dev: ", ".join(str(a.address) for a in dev.addresses)),
    Column("OperStatus", lambda dev: oper_state_text(dev.oper_state)),
)


def device_by_name(devices: Table[Device], txn: ReadTxn, name: str) -> Device | None:
    """The device that has this name or alternative name."""
    return next(iter(devices.list(txn, name, NAME)), None)


def new_devices_table(db: DB) -> RWTable[Device]:
    """Registers ``devices`` with the database."""
    return new_table(
        db, TABLE_NAME, ID, NAME, SELECTED, columns=COLUMNS, row_type=Device, to_json=to_json
    )

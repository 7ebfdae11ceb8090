# SPDX-License-Identifier: Apache-2.0
"""Devices to programs: which device of the node runs which packet program at which hook.

Devices that face other nodes (*selected*) get the programs of the node, and a row in ``netdevs``
with the addresses that translated packets leave with; host ends of pods' devices get those of pods.
Devices of pods whose network is ours are not among these: their endpoints ask for their programs.
Everything else is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cilia.datapath.options import DatapathOptions
from cilia.datapath.packets import OTHER_POD
from cilia.node.device_selection import DeviceFilter
from cilia.node.node_addresses import choose_address, sorted_addresses
from cilia.node.own_addresses import OwnAddresses, none_known
from statedb import DB, ReadTxn, RWTable, Table, WatchSet, WriteTxn, wait_initialized
from tables.addressing import IP
from tables.datapath.attachments import AttachHook, Attachment, attachment_key
from tables.datapath.netdevs import Netdev
from tables.node.devices import GROUP_CHAINED, GROUP_ENDPOINT, Device, names
from tables.node.routes import RouteScope

__all__ = ["OWNER", "POD_PROGRAMS", "PacketDevicesController"]

#: Owner of the attachments.
OWNER: Final = "cilia"

#: Program of each hook, by the kind of device.
NODE_PROGRAMS: Final = {AttachHook.INGRESS: "from_netdev", AttachHook.EGRESS: "to_netdev"}
POD_PROGRAMS: Final = {AttachHook.INGRESS: "from_pod", AttachHook.EGRESS: "to_pod"}
OTHER_POD_PROGRAMS: Final = POD_PROGRAMS | {AttachHook.INGRESS: OTHER_POD}
XDP_PROGRAM: Final = "from_netdev_xdp"


class PacketDevicesController:
    """One task calls `run`. Owns all of ``netdevs``, and the rows of `OWNER` in ``attachments``."""

    def __init__(
        self,
        db: DB,
        devices: Table[Device],
        netdevs: RWTable[Netdev],
        attachments: RWTable[Attachment],
        options: DatapathOptions,
        programs_dir: Path,
        own: OwnAddresses = none_known,
        before: Sequence[IP] = (),
    ) -> None:
        """
        Args:
            programs_dir: the pins of the programs.
            own: the addresses of the Node object.
            before: addresses that the node's traffic left with when the agent started.
        """
        self._db = db
        self._devices = devices
        self._netdevs = netdevs
        self._attachments = attachments
        self._xdp, self._xdp_optional = options.xdp
        self._pod_devices = DeviceFilter(options.pod_device_patterns)
        self._pod_programs = OTHER_POD_PROGRAMS if options.pod_network else POD_PROGRAMS
        self._programs_dir = programs_dir
        self._own = own
        self._before = before
        with db.write_txn(netdevs, attachments) as wtxn:
            self._initialized = [
                table.register_initializer(wtxn, "packet-devices")
                for table in (netdevs, attachments)
            ]

    async def run(self) -> None:
        """Follow the table of devices for ever."""
        await wait_initialized(self._db, self._devices)
        while True:
            await self._db.look(self._look).wait()

    def _look(self, txn: ReadTxn) -> WatchSet:
        """Write what follows from the devices; return what closes when they change."""
        devices, changed = self._devices.all_watch(txn)
        watches = WatchSet(changed)
        self.step(devices, self._own(txn, watches) or ())
        return watches

    def step(self, devices: Iterable[Device], own: Sequence[IP] = ()) -> None:
        """Write what differs; the first call makes the tables initialized."""
        held = {row.index: row for row in self._netdevs.all(self._db.read_txn())}
        netdevs: dict[int, Netdev] = {}
        attachments: list[Attachment] = []
        for dev in devices:
            if dev.selected:
                netdevs[dev.index] = netdev_of(dev, own, held.get(dev.index), self._before)
                attachments += self._node_attachments(dev)
            elif dev.is_up and self._is_pod_device(dev):
                attachments += self._of(dev, self._pod_programs)
        with self._db.write_txn(self._netdevs, self._attachments) as wtxn:
            self._write_netdevs(wtxn, netdevs)
            self._write_attachments(wtxn, attachments)
            while self._initialized:
                self._initialized.pop()(wtxn)

    def _is_pod_device(self, dev: Device) -> bool:
        """Without a pattern there is none; an endpoint's is known by its group from its first
        moment on.
        """
        if dev.group in (GROUP_ENDPOINT, GROUP_CHAINED):
            return False
        return not self._pod_devices.is_empty and self._pod_devices.matches(names(dev))

    def _node_attachments(self, dev: Device) -> Iterator[Attachment]:
        yield from self._of(dev, NODE_PROGRAMS)
        if self._xdp is not None:
            yield Attachment(
                target=dev.name,
                hook=AttachHook.XDP,
                owner=OWNER,
                program=f"{self._programs_dir}/{XDP_PROGRAM}",
                xdp_mode=self._xdp,
                optional=self._xdp_optional,
            )

    def _of(self, dev: Device, programs: dict[AttachHook, str]) -> Iterator[Attachment]:
        for hook, program in programs.items():
            path = f"{self._programs_dir}/{program}"
            yield Attachment(target=dev.name, hook=hook, owner=OWNER, program=path)

    def _write_netdevs(self, wtxn: WriteTxn, wanted: dict[int, Netdev]) -> None:
        for old in list(self._netdevs.all(wtxn)):
            if old.index not in wanted:
                self._netdevs.delete(wtxn, old)
        for row in wanted.values():
            found = self._netdevs.get(wtxn, row.index)
            if found is None or msgspec.structs.replace(found, status=row.status) != row:
                self._netdevs.insert(wtxn, row)

    def _write_attachments(self, wtxn: WriteTxn, wanted: list[Attachment]) -> None:
        keys = {attachment_key(row) for row in wanted}
        for old in list(self._attachments.all(wtxn)):
            if old.owner == OWNER and attachment_key(old) not in keys:
                self._attachments.delete(wtxn, old)
        for row in wanted:
            found = self._attachments.get(wtxn, attachment_key(row))
            if found is None or _wish(found) != _wish(row):
                self._attachments.insert(wtxn, row)


def _wish(row: Attachment) -> tuple[object, ...]:
    """What the controller says of a row; the rest is the reconciler's."""
    return row.program, row.order, row.xdp_mode, row.optional


def netdev_of(
    dev: Device, own: Sequence[IP] = (), held: Netdev | None = None, before: Sequence[IP] = ()
) -> Netdev:
    """Return the row of a selected device: an address of the Node object for each family, else the
    one that is used already, by an agent before too, else the best global one."""
    usable = [a.address for a in sorted_addresses(dev.addresses) if a.scope < RouteScope.LINK]
    used = () if held is None else [ip for ip in (held.ipv4, held.ipv6) if ip is not None]
    best: dict[bool, IP] = {}
    for ipv6 in (False, True):
        of_family = [ip for ip in usable if ip.is_ipv6 is ipv6]
        for ip in choose_address(of_family, (*own, *used, *before)):
            best[ipv6] = ip
    return Netdev(dev.index, dev.name, best.get(False), best.get(True))

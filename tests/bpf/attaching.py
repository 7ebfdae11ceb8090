# SPDX-License-Identifier: Apache-2.0
"""A node's datapath whose programs are attached by rows, as the agent does it, one step a call."""

from __future__ import annotations

from bpf import features
from bpf.datapath import NodeDatapath
from bpf.packet_programs import PacketConfig
from bpf.sock import SockConfig
from cilia.datapath.programs import socket_attachments
from cilia.linux.netlink import Netlink
from reconcilers.datapath.attachment_places import FilterPlaces, LinkPlaces
from reconcilers.datapath.attachments import AttachmentOperations
from reconcilers.datapath.cgroup_places import CgroupPlaces
from statedb import DB
from tables.datapath.attachments import Attachment
from tables.node.devices import new_devices_table


class AttachingDatapath(NodeDatapath):
    """Maps and programs, with the operations that attach these, and no reconciler around them.

    Devices are those of the namespace in which it is made and used.
    """

    def __init__(
        self,
        config: SockConfig,
        packets: PacketConfig | None = None,
        *,
        tcx: bool | None = None,
    ) -> None:
        """`tcx`: take links for the hooks of devices, not tc filters; by default if possible."""
        super().__init__(config, packets)
        self._netlink: Netlink | None = None
        self._filters: FilterPlaces | None = None
        if not (features.has_tcx() if tcx is None else tcx):
            self._netlink = Netlink()
            self._filters = FilterPlaces(self._netlink, config.pin_dir)
            self.count_unlinked(self._filters.program_ids)
        self.db = DB()
        self.devices = new_devices_table(self.db)
        #: Rows beside those of socket programs.
        self.device_rows: list[Attachment] = []
        self._cgroups: CgroupPlaces | None = None
        self._operations: AttachmentOperations | None = None

    @property
    def rows(self) -> list[Attachment]:
        programs = self.socket_programs
        sockets = socket_attachments(self.config.cgroup, self.programs_dir, programs)
        return [*sockets, *self.device_rows]

    @property
    def operations(self) -> AttachmentOperations:
        if self._operations is None:
            self._cgroups = CgroupPlaces(self.links_dir)
            self._operations = AttachmentOperations(
                self.devices,
                LinkPlaces(self.device_links_dir),
                self._cgroups,
                self._filters,
                restore=self.publish,
            )
        return self._operations

    def attach(self) -> None:
        """Put the loaded programs in force. Raises: whatever the first row fails with."""
        self.carry()
        self.publish()
        txn, rows = self.db.read_txn(), self.rows
        for revision, row in enumerate(rows):
            self.operations.update(txn, revision, row)
        self.operations.prune(txn, rows)
        self.carry()

    def not_in_force(self) -> list[str]:
        """Hooks whose row differs from what a read-back finds."""
        actual = self.operations.actual()
        expected = self.operations.expected(self.db.read_txn(), self.rows)
        return [row.hook.value for name, value, row in expected if actual.get(name) != value]

    def close(self) -> None:
        if self._cgroups is not None:
            self._cgroups.close()
        if self._netlink is not None:
            self._netlink.close()
        super().close()

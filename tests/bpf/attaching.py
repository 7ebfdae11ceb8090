# SPDX-License-Identifier: Apache-2.0
"""A node's datapath whose programs are attached by rows, as the agent does it, one step a call."""

from __future__ import annotations

from bpf.datapath import NodeDatapath
from bpf.packet_programs import PacketConfig
from bpf.sock import SockConfig
from cilia.datapath.programs import socket_attachments
from reconcilers.datapath.attachment_places import LinkPlaces
from reconcilers.datapath.attachments import AttachmentOperations
from reconcilers.datapath.cgroup_places import CgroupPlaces
from statedb import DB
from tables.datapath.attachments import Attachment
from tables.node.devices import new_devices_table


class AttachingDatapath(NodeDatapath):
    """Maps and programs, with the operations that attach these, and no reconciler around them."""

    def __init__(self, config: SockConfig, packets: PacketConfig | None = None) -> None:
        super().__init__(config, packets)
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
        super().close()

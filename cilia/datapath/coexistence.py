# SPDX-License-Identifier: Apache-2.0
"""Who else is where we are: programs on our hooks, and kube-proxy's rules for our addresses.

Told, never removed: two who translate the same address do no harm, since each socket and packet
meets ours first; but only one is needed, and rules that nobody updates any more go stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bpf.foreign import ForeignProgram
from cilia.linux.errors import NetlinkError
from cilia.linux.netlink import Netlink
from cilia.linux.proxy_rules import ProxyRules, kube_proxy_rules
from reconcilers.datapath.attachment_places import foreign_filters
from statedb import DB, ReadTxn, Table
from tables.addressing import IP
from tables.datapath.attachments import Attachment
from tables.loadbalancer.frontends import Frontend

__all__ = ["Coexistence"]

#: Addresses that are named; the others are counted.
EXAMPLES = 3


class Hooks(Protocol):
    """What is asked of the programs."""

    def foreign_programs(self) -> list[ForeignProgram]: ...


@dataclass(frozen=True)
class Coexistence:
    """Looks when it is asked: blocking, some milliseconds and 20 µs for each foreign rule."""

    frontends: Table[Frontend]
    attachments: Table[Attachment]
    hooks: Hooks
    netlink: Netlink
    pin_dir: Path

    def as_dict(self, db: DB) -> dict[str, Any]:
        """`error` is a sentence if the kernel refused to tell a part of it, or empty.

        No snapshot is held while the kernel is asked.
        """
        devices = db.look(self._devices)
        names = {0: "cgroup"}
        programs: list[ForeignProgram] = []
        rules: list[ProxyRules] = []
        error = ""
        try:
            names |= {link.index: link.name for link in self.netlink.links()}
            programs = [*self.hooks.foreign_programs(), *self._filters(devices, names)]
            rules = kube_proxy_rules(self.netlink)
        except NetlinkError as refused:
            error = str(refused)
        served = db.look(self._served) if rules else set()
        return {
            "programs": [program_dict(program, names) for program in programs],
            "kube_proxy": [rules_dict(found, served) for found in rules],
            "error": error,
        }

    def _devices(self, txn: ReadTxn) -> set[str]:
        """Return those that programs are meant for."""
        return {row.target for row in self.attachments.all(txn) if row.hook.is_device}

    def _served(self, txn: ReadTxn) -> set[IP]:
        return {fe.address.ip for fe in self.frontends.all(txn)}

    def _filters(self, devices: set[str], names: dict[int, str]) -> Iterator[ForeignProgram]:
        """On these devices. Raises: NetlinkError."""
        for index, name in sorted(names.items()):
            if name in devices:
                yield from foreign_filters(self.netlink, index, self.pin_dir)


def program_dict(program: ForeignProgram, names: dict[int, str]) -> dict[str, Any]:
    return {
        "at": names.get(program.ifindex, ""),
        "hook": program.hook,
        "id": program.program_id,
        "name": program.name,
    }


def rules_dict(rules: ProxyRules, served: set[IP]) -> dict[str, Any]:
    """`addresses` of its rules, of which `served` are ours too."""
    both = sorted(served & {IP.from_packed(address) for address in rules.addresses})
    return {
        "mode": rules.mode,
        "place": rules.place,
        "addresses": len(rules.addresses),
        "served": len(both),
        "examples": [str(address) for address in both[:EXAMPLES]],
    }

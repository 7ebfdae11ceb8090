# SPDX-License-Identifier: Apache-2.0
"""The datapath as the agent sees it: maps to reconcile into, in the kernel or in memory.

`KernelDatapath` takes over what is pinned and has programs to attach, `MemoryDatapath` is the dry
run. Opening the former blocks: the agent does it in a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from bpf.maps.cluster_nodes import ClusterNodeMaps
from bpf.maps.lb import LBMaps
from bpf.maps.raw import RawMap
from bpf.maps.redirect_skips import SkipMaps
from bpf.maps.switch import Switch, SwitchState
from cilia.datapath.packets import FlowMaps
from cilia.datapath.programs import NodePrograms, nothing

if TYPE_CHECKING:
    from bpf.packet_programs import PacketConfig
    from bpf.sock import SockConfig

log = structlog.get_logger("datapath")

__all__ = ["Datapath", "KernelDatapath", "MemoryDatapath"]


class Datapath(Protocol):
    """Maps to reconcile into."""

    maps: LBMaps
    # None: these programs spare nobody a redirection.
    skip: SkipMaps | None
    nodes: ClusterNodeMaps
    # None: no programs of packets.
    flows: FlowMaps | None
    switch: Switch

    def mode(self) -> str: ...
    def map_usage(self) -> list[dict[str, Any]]: ...

    def all_maps(self) -> Iterator[RawMap]:
        """All maps that are open, those of packet programs too."""
        ...

    def close(self) -> None: ...


def _usage(maps: LBMaps) -> list[dict[str, Any]]:
    return [
        {"name": raw.name, "entries": raw.count(), "max_entries": raw.max_entries}
        for raw in maps.all()
    ]


class MemoryDatapath:
    """Maps in memory, without programs."""

    def __init__(self, maps: LBMaps, skip: SkipMaps | None = None) -> None:
        self.maps = maps
        self.skip: SkipMaps | None = skip or SkipMaps.fake()
        self.nodes = ClusterNodeMaps.fake()
        self.flows: FlowMaps | None = None
        self.switch = Switch.fake()

    def mode(self) -> str:
        return "in memory (dry run)"

    def map_usage(self) -> list[dict[str, Any]]:
        return _usage(self.maps)

    def all_maps(self) -> Iterator[RawMap]:
        yield from self.maps.all()
        yield from self.nodes

    def close(self) -> None:
        self.maps.close()


class KernelDatapath:
    """Pinned maps of one instance, and its verified programs."""

    def __init__(
        self,
        config: SockConfig,
        packets: PacketConfig | None = None,
        prepare: Callable[[], None] = nothing,
    ) -> None:
        """Opens the pinned maps, makes those that are missing, and verifies the programs.

        `prepare`: see `NodePrograms`.

        Raises:
            bpf.errors.BPFError: something is missing or the kernel refuses; nothing was attached.
        """
        from bpf.datapath import NodeDatapath

        NodeDatapath.check_requirements(config)
        self._node = NodeDatapath(config, packets)
        self.maps = self._node.open_maps()
        if self._node.put_back:
            log.warning("pins of maps were gone, and are put back", maps=self._node.put_back)
        self.skip: SkipMaps | None = self._node.skip_maps()
        self.nodes = self._node.cluster_node_maps()
        self.flows = FlowMaps.of(self._node) if packets is not None else None
        self.switch = self._node.switch()
        # Until now someone else may have had the Services' connections.
        if not self._node.in_force and self.switch.state is SwitchState.SERVE:
            self.switch.state = SwitchState.TAKE_OVER
        self._node.load()
        self.programs = NodePrograms(self._node, prepare)

    def mode(self) -> str:
        return f"kernel, cgroup {self._node.config.cgroup}"

    def map_usage(self) -> list[dict[str, Any]]:
        return _usage(self.maps)

    def all_maps(self) -> Iterator[RawMap]:
        yield from self.maps.all()
        yield from self.nodes
        if self.flows is not None:
            yield from self.flows.sized()

    def close(self) -> None:
        """Programs, links and maps stay in force."""
        self.maps.close()
        if self.skip is not None:
            self.skip.close()
        self.nodes.close()
        if self.flows is not None:
            self.flows.close()
        self.switch.close()
        self._node.close()

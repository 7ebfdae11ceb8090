# SPDX-License-Identifier: Apache-2.0
"""The datapath as the agent sees it: maps to reconcile into, in the kernel or in memory.

`KernelDatapath` takes over what is pinned, `MemoryDatapath` is the dry run. Blocking: the agent
calls `open` and `attach` in a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any, Protocol

from bpf.maps.lb import LBMaps
from bpf.maps.raw import RawMap
from bpf.maps.redirect_skips import SkipMaps
from bpf.maps.switch import Switch, SwitchState
from cilia.datapath.packets import FlowMaps

if TYPE_CHECKING:
    from bpf.foreign import ForeignProgram
    from bpf.packet_programs import PacketConfig
    from bpf.sock import SockConfig

__all__ = ["Datapath", "KernelDatapath", "MemoryDatapath"]


class Datapath(Protocol):
    """Open the maps, reconcile into them, attach; a start may be repeated after any failure."""

    maps: LBMaps
    # None: these programs spare nobody a redirection.
    skip: SkipMaps | None
    # None: no programs of packets.
    flows: FlowMaps | None
    switch: Switch

    def attach_early(self) -> None:
        """Put the programs in force now, unless they need maps that must be filled first."""

    def attach_late(self) -> None:
        """The maps are complete: put in force what was held back, remove the predecessor's."""

    def drift(self) -> list[str]:
        """Names of programs that should be in force and are not."""
        ...

    def repair(self) -> None:
        """Attach what drifted."""

    def timings(self) -> dict[str, float]:
        """Seconds that each phase of the start took."""
        ...

    def mode(self) -> str: ...
    def links(self) -> list[dict[str, Any]]: ...
    def map_usage(self) -> list[dict[str, Any]]: ...

    def foreign_programs(self) -> list[ForeignProgram]:
        """Programs of others on the hooks that these have."""
        ...

    def all_maps(self) -> Iterator[RawMap]:
        """All maps that are open, those of packet programs too."""
        ...

    def close(self) -> None: ...


def _usage(maps: LBMaps) -> list[dict[str, Any]]:
    return [
        {"name": raw.name, "entries": _count(raw), "max_entries": raw.max_entries}
        for raw in maps.all()
    ]


def _count(raw: RawMap) -> int:
    """Without reading values where the map can do that."""
    return len(raw) if isinstance(raw, Sized) else sum(1 for _ in raw.items())


class MemoryDatapath:
    """Maps in memory; nothing is attached."""

    def __init__(self, maps: LBMaps, skip: SkipMaps | None = None) -> None:
        self.maps = maps
        self.skip: SkipMaps | None = skip or SkipMaps.fake()
        self.flows: FlowMaps | None = None
        self.switch = Switch.fake()

    def attach_early(self) -> None:
        """Nothing to attach."""

    def attach_late(self) -> None:
        """Nothing to attach."""

    def drift(self) -> list[str]:
        return []

    def repair(self) -> None:
        """Nothing can drift."""

    def timings(self) -> dict[str, float]:
        return {}

    def mode(self) -> str:
        return "in memory (dry run)"

    def links(self) -> list[dict[str, Any]]:
        return []

    def map_usage(self) -> list[dict[str, Any]]:
        return _usage(self.maps)

    def foreign_programs(self) -> list[ForeignProgram]:
        return []

    def all_maps(self) -> Iterator[RawMap]:
        return self.maps.all()

    def close(self) -> None:
        self.maps.close()


class KernelDatapath:
    """Pinned maps and links of one instance on one cgroup."""

    def __init__(self, config: SockConfig, packets: PacketConfig | None = None) -> None:
        """Opens the pinned maps, makes those that are missing, and verifies the programs.

        Raises:
            bpf.errors.BPFError: something is missing or the kernel refuses; nothing was attached.
        """
        from bpf.sock import SockDatapath

        SockDatapath.check_requirements(config)
        self._sock = SockDatapath(config, packets)
        self._cgroup = config.cgroup
        self.maps = self._sock.open_maps()
        self.skip: SkipMaps | None = self._sock.skip_maps()
        self.flows = FlowMaps.of(self._sock) if packets is not None else None
        self.switch = self._sock.switch()
        # Until now someone else may have had the Services' connections.
        if not self._sock.in_force and self.switch.state is SwitchState.SERVE:
            self.switch.state = SwitchState.TAKE_OVER
        self._sock.load()
        self._attached = False

    def attach_early(self) -> None:
        if not self._sock.migrating:
            self._sock.attach()
            self._attached = True

    def attach_late(self) -> None:
        if not self._attached:
            self._sock.attach()
            self._attached = True
        self._sock.retire()

    def drift(self) -> list[str]:
        return self._sock.drift()

    def repair(self) -> None:
        self._sock.attach()

    def timings(self) -> dict[str, float]:
        return self._sock.timings

    def mode(self) -> str:
        return f"kernel, cgroup {self._cgroup}"

    def links(self) -> list[dict[str, Any]]:
        return [{"name": path.name} for path in sorted(self._sock.links_dir.iterdir())]

    def map_usage(self) -> list[dict[str, Any]]:
        return _usage(self.maps)

    def foreign_programs(self) -> list[ForeignProgram]:
        from bpf.foreign import foreign_programs

        directories = (self._sock.links_dir, self._sock.packets.links_dir)
        return foreign_programs(directories, self._cgroup)

    def all_maps(self) -> Iterator[RawMap]:
        yield from self.maps.all()
        if self.flows is not None:
            yield from self.flows.sized()

    def close(self) -> None:
        """Programs, links and maps stay in force."""
        self.maps.close()
        if self.skip is not None:
            self.skip.close()
        if self.flows is not None:
            self.flows.close()
        self.switch.close()
        self._sock.close()

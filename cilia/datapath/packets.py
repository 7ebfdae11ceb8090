# SPDX-License-Identifier: Apache-2.0
"""What belongs to programs of packets: their objects, sizes and constants, and the maps they fill.

Constants of a feature are added by that feature; here are those of connection tracking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bpf import events
from bpf.maps import endpoints, ipcache, listeners, netdev
from bpf.maps.ct import CT_MAPS
from bpf.maps.listeners import Listeners
from bpf.maps.masquerade import NAMES as MASQUERADE_MAPS
from bpf.maps.masquerade import MasqueradeMaps
from bpf.maps.nat import NAT_MAPS, SIGNAL, SWEPT
from bpf.maps.raw import RawMap
from bpf.packet_programs import PacketConfig
from cilia.datapath.conntrack import ConntrackMaps
from cilia.datapath.options import DatapathOptions
from tables.addressing import IP

if TYPE_CHECKING:
    from bpf.datapath import NodeDatapath
    from bpf.maps.map import Map
    from bpf.maps.percpu import PerCpuMap

__all__ = ["NETFILTER_LOOKUP", "OTHER_POD", "FlowMaps", "constant", "packet_config"]

METRICS: Final = "cilia_metrics"
EVENTS: Final = "cilia_events"
LOST: Final = "cilia_lost"

#: The program of another plugin's pods where the pod network is ours; else they have the usual one.
OTHER_POD: Final = "from_other_pod"

#: The constant of programs that look up netfilter's connections.
NETFILTER_LOOKUP: Final = "netfilter_lookup"


@dataclass(frozen=True)
class FlowMaps:
    """What the agent does with the maps of packet programs, open."""

    conntrack: ConntrackMaps
    netdev: RawMap
    # Workloads whose network is ours, by device and by address.
    endpoints: RawMap
    endpoint_addresses: RawMap
    # Where these keep their source.
    masquerade: MasqueradeMaps
    ipcache: RawMap
    metrics: PerCpuMap
    signal: Map
    # The ring buffer of events, what it had no room for, and who listens.
    event_ring: Map
    lost: PerCpuMap
    listeners: Listeners
    programs_dir: Path
    held: Sequence[Map]

    @classmethod
    def of(cls, node: NodeDatapath) -> FlowMaps:
        """To be called when its maps are open."""
        from bpf.maps.percpu import PerCpuMap

        of_endpoints = (endpoints.NAME, endpoints.BY_ADDRESS)
        names = (
            *CT_MAPS,
            *NAT_MAPS,
            SWEPT,
            netdev.NAME,
            *of_endpoints,
            *MASQUERADE_MAPS,
            ipcache.NAME,
        )
        opened = {name: node.map(name) for name in names}
        metrics = PerCpuMap(node.map(METRICS).detach_fd())
        signal = node.map(SIGNAL)
        ring, heard = node.map(EVENTS), node.map(listeners.NAME)
        lost = PerCpuMap(node.map(LOST).detach_fd())
        held = [*opened.values(), metrics, signal, ring, lost, heard]
        conntrack = ConntrackMaps.of(opened)
        return cls(
            conntrack,
            opened[netdev.NAME],
            opened[endpoints.NAME],
            opened[endpoints.BY_ADDRESS],
            MasqueradeMaps(*(opened[name] for name in MASQUERADE_MAPS)),
            opened[ipcache.NAME],
            metrics,
            signal,
            ring,
            lost,
            Listeners(heard),
            node.programs_dir,
            held,
        )

    def sized(self) -> Iterable[RawMap]:
        """Those that can be full."""
        return (opened for opened in self.held if opened.name in {*CT_MAPS, *NAT_MAPS})

    def addresses(self) -> tuple[IP, ...]:
        """Return those that packets leave the node with, as the programs have them now."""
        values = [netdev.decode_value(value) for _, value in self.netdev.items()]
        found = {packed for value in values for packed in (value.ipv4, value.ipv6) if packed}
        return tuple(sorted(map(IP.from_packed, found)))

    def read_metrics(self) -> Iterable[events.Metric]:
        return events.read_metrics(self.metrics)

    def close(self) -> None:
        for opened in self.held:
            opened.close()


def packet_config(options: DatapathOptions, features: Mapping[str, bytes]) -> PacketConfig:
    """Return objects, constants (with those of `features`) and sizes for the loader."""
    constants = {**_constants(options), **features}
    unwanted = frozenset() if options.pod_network else frozenset({OTHER_POD})
    return PacketConfig(_objects(options), constants, _entries(options), unwanted)


def constant(value: int) -> bytes:
    """Return a number or a flag as a `const volatile` variable of a program has it."""
    return bytes([value]) if isinstance(value, bool) else value.to_bytes(4, "little")


def _objects(options: DatapathOptions) -> list[str]:
    mode, _ = options.xdp
    return ["lxc", "host", *(["xdp"] if mode is not None else [])]


def _constants(options: DatapathOptions) -> dict[str, bytes]:
    from bpf.features import has_conntrack_lookup

    timeouts = {f"ct_timeout_{name}_s": s for name, s in options.conntrack_timeouts_s.items()}
    values = {
        **timeouts,
        "ct_accounting": options.bpf_conntrack_accounting,
        NETFILTER_LOOKUP: has_conntrack_lookup(),
        "pod_network": options.pod_network,
        "host_legacy_routing": options.host_legacy_routing,
    }
    return {name: constant(value) for name, value in values.items()}


def _entries(options: DatapathOptions) -> dict[str, int]:
    sizes = {
        "cilia_ct{}_tcp": options.bpf_ct_global_tcp_max,
        "cilia_ct{}_any": options.bpf_ct_global_any_max,
        "cilia_snat{}": options.bpf_nat_global_max,
        "cilia_frag{}": options.bpf_fragments_map_max,
        "cilia_nodes{}": options.bpf_node_map_max,
    }
    entries = {name.format(family): size for name, size in sizes.items() for family in (4, 6)}
    # Nobody is in them while another plugin makes the pods' devices.
    number, prefixes = (endpoints.ENTRIES, ipcache.ENTRIES) if options.pod_network else (1, 1)
    return entries | {
        endpoints.NAME: number,
        endpoints.BY_ADDRESS: 2 * number,
        ipcache.NAME: prefixes,
    }

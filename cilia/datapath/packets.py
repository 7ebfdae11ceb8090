# SPDX-License-Identifier: Apache-2.0
"""The packet datapath of a node, wired: what its programs are told, and who looks after its maps.

devices -> netdevs -> cilia_netdev           which devices lead to clients and other nodes
devices -> attachments -> TCX, XDP           which device runs which program
frontends -> conntrack                       UDP towards a backend that is gone
time -> conntrack, snat                      what has expired
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from bpf import events
from bpf.maps.ct import CT_MAPS
from bpf.maps.lb import Algorithm, LBMaps
from bpf.maps.nat import NAT_MAPS
from bpf.maps.netdev import NAME as NETDEV
from bpf.maps.raw import RawMap
from bpf.packet_programs import PacketConfig
from cilia.agent.config import AgentConfig
from cilia.datapath.conntrack import MAX_INTERVAL_S, ConntrackGC, ConntrackMaps
from cilia.datapath.metrics import DatapathMetrics
from cilia.datapath.packet_devices import PacketDeviceConfig, PacketDevicesController
from cilia.loadbalancer.connections.backend_audit import BackendAudit
from cilia.node.device_selection import DeviceFilter
from reconcilers.datapath.netdevs import netdev_operations
from reconcilers.metrics import Metrics
from reconcilers.reconciler import Health, Reconciler
from reconcilers.verify import Drift
from statedb import DB, RWTable
from tables.datapath.attachments import Attachment, XdpMode
from tables.datapath.netdevs import Netdev, get_status, set_status
from tables.loadbalancer.frontends import Frontend
from tables.node.devices import Device

if TYPE_CHECKING:
    from bpf.datapath import NodeDatapath
    from bpf.maps.map import Map
    from bpf.maps.percpu import PerCpuMap

__all__ = ["FlowMaps", "PacketTables", "packet_config", "packet_jobs"]

Job = Callable[[], Awaitable[object]]

METRICS: Final = "cilia_metrics"

#: `--bpf-lb-acceleration`: how XDP is attached, and whether a driver may refuse.
ACCELERATION: Final = {
    "disabled": (None, False),
    "native": (XdpMode.NATIVE, False),
    "best-effort": (XdpMode.NATIVE, True),
    "testing-only": (XdpMode.GENERIC, False),
}


@dataclass(frozen=True)
class FlowMaps:
    """What the agent does with the maps of packet programs, open."""

    conntrack: ConntrackMaps
    netdev: RawMap
    metrics: PerCpuMap
    programs_dir: Path
    held: Sequence[Map]

    @classmethod
    def of(cls, node: NodeDatapath) -> FlowMaps:
        """To be called when its maps are open."""
        from bpf.maps.percpu import PerCpuMap

        opened = {name: node.map(name) for name in (*CT_MAPS, *NAT_MAPS, NETDEV)}
        metrics = PerCpuMap(node.map(METRICS).detach_fd())
        held = [*opened.values(), metrics]
        conntrack = ConntrackMaps.of(opened)
        return cls(conntrack, opened[NETDEV], metrics, node.programs_dir, held)

    def sized(self) -> Iterable[RawMap]:
        """Those that can be full."""
        return (opened for opened in self.held if opened.name in {*CT_MAPS, *NAT_MAPS})

    def read_metrics(self) -> Iterable[events.Metric]:
        return events.read_metrics(self.metrics)

    def close(self) -> None:
        for opened in self.held:
            opened.close()


def packet_config(config: AgentConfig) -> PacketConfig:
    """Objects, constants and sizes for the loader."""
    return PacketConfig(_objects(config), _constants(config), _entries(config))


def _objects(config: AgentConfig) -> list[str]:
    accelerated = config.bpf_lb_acceleration != "disabled"
    return ["lxc", "host", *(["xdp"] if accelerated else [])]


def _constants(config: AgentConfig) -> dict[str, bytes]:
    seed4, seed6 = config.flow_hash_seeds
    numbers = {
        "lb_algorithm": Algorithm.named(config.bpf_lb_algorithm),
        "lb_hash4_seed": seed4,
        "lb_hash6_seed": seed6,
        "lb_maglev_size": config.bpf_lb_maglev_table_size,
        "nat_min_port": config.node_port_max + 1,
        "nat_max_port": 65535,
        **{f"ct_timeout_{name}_s": s for name, s in config.conntrack_timeouts_s.items()},
    }
    flags = {
        "nodeport_dsr": config.bpf_lb_mode != "snat" or config.bpf_lb_mode_annotation,
        "nodeport_dispatch": config.bpf_lb_dsr_dispatch == "ipip",
        "lb_reject": config.service_no_backend_response == "reject",
        "ct_accounting": config.bpf_conntrack_accounting,
    }
    return {
        **{name: number.to_bytes(4, "little") for name, number in numbers.items()},
        **{name: bytes([flag]) for name, flag in flags.items()},
    }


def _entries(config: AgentConfig) -> dict[str, int]:
    sizes = {
        "cilia_ct{}_tcp": config.bpf_ct_global_tcp_max,
        "cilia_ct{}_any": config.bpf_ct_global_any_max,
        "cilia_snat{}": config.bpf_nat_global_max,
        "cilia_frag{}": config.bpf_fragments_map_max,
    }
    return {name.format(family): size for name, size in sizes.items() for family in (4, 6)}


class PacketTables(msgspec.Struct, frozen=True):
    """What the jobs read, and what they write."""

    devices: RWTable[Device]
    netdevs: RWTable[Netdev]
    attachments: RWTable[Attachment]
    frontends: RWTable[Frontend]
    drift: RWTable[Drift]


def packet_jobs(
    config: AgentConfig,
    db: DB,
    tables: PacketTables,
    lb_maps: LBMaps,
    flows: FlowMaps,
    frontends: Reconciler[Frontend],
    *,
    health: Callable[[str], Health],
    metrics: Metrics,
    datapath_metrics: DatapathMetrics,
) -> Mapping[str, Job]:
    """Everything around the packet programs that runs, by name."""
    devices = PacketDevicesController(
        db,
        tables.devices,
        tables.netdevs,
        tables.attachments,
        _device_config(config, flows.programs_dir),
        _pod_devices(config),
    )
    netdevs = Reconciler(
        db,
        tables.netdevs,
        netdev_operations(flows.netdev),
        get_status=get_status,
        set_status=set_status,
        health=health("netdevs"),
        metrics=metrics,
        drift=tables.drift,
    )
    interval_s, max_interval_s = config.conntrack_gc_s
    collector = ConntrackGC(
        flows.conntrack,
        interval_s=interval_s,
        max_interval_s=max_interval_s or MAX_INTERVAL_S,
        done=datapath_metrics.swept,
    )
    audit = BackendAudit(flows.conntrack, lb_maps, tables.frontends)

    async def audit_backends() -> None:
        await audit.run(db, frontends)

    return {
        "packet-devices": devices.run,
        "reconcile-netdevs": netdevs.run,
        "conntrack-gc": collector.run,
        "conntrack-audit": audit_backends,
    }


def _device_config(config: AgentConfig, programs_dir: Path) -> PacketDeviceConfig:
    mode, optional = ACCELERATION[config.bpf_lb_acceleration]
    return PacketDeviceConfig(str(programs_dir), mode, optional)


def _pod_devices(config: AgentConfig) -> Callable[[Device], bool]:
    """No pattern, no pod."""
    patterns = DeviceFilter(config.pod_device_patterns)

    def matches(dev: Device) -> bool:
        return not patterns.is_empty and patterns.matches((dev.name, *dev.alternative_names))

    return matches

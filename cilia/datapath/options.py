# SPDX-License-Identifier: Apache-2.0
"""The agent's options on the datapath: which devices, and what is remembered of flows.

Named and set as in the field, but for `--pod-devices`, which stands for what another CNI plugin
knows. Durations are written as Go does (`10s`, `2h13m20s`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from bpf.xdp import XdpMode
from cilia.datapath.chaining_options import NONE, ChainingOptions
from cilia.program.values import Duration, PositiveDuration
from cilia.script.environment import parse_duration

__all__ = ["DatapathOptions"]

Entries = Annotated[int, Field(ge=1024, le=1 << 24)]

#: Host ends of pods' devices by the names that common CNI plugins give them.
POD_DEVICES = "veth+,lxc+,cali+,eni+,azv+,gke+"


#: `--bpf-lb-acceleration`: how XDP is attached, and whether a driver may refuse.
ACCELERATION: Final[dict[str, tuple[XdpMode | None, bool]]] = {
    "disabled": (None, False),
    "native": (XdpMode.NATIVE, False),
    "best-effort": (XdpMode.NATIVE, True),
    "testing-only": (XdpMode.GENERIC, False),
}


class DatapathOptions(ChainingOptions):
    """Programs at cgroup and devices, connection tracking and source translation."""

    cgroup_root: Annotated[
        Path | None,
        Field(description="cgroup v2 directory whose processes are served; default: its root."),
    ] = None

    pod_network: Annotated[
        bool,
        Field(
            description="Be the pod network of this node: answer the CNI plugin of the container"
            " runtime. Pods of another plugin are served with and without it (--pod-devices)."
        ),
    ] = False
    pod_devices: Annotated[
        str,
        Field(
            description="Comma list of device name patterns that lead to another plugin's pods of"
            " this node (veth+, !veth9); devices that face other nodes are never among them, nor"
            " those of pods whose network is from cilia."
        ),
    ] = POD_DEVICES
    enable_host_legacy_routing: Annotated[
        bool,
        Field(
            description="With --pod-network: packets between pods of this node take the node's"
            " stack and its rules, not the short way from program to pod. On with"
            " --cni-chaining-mode."
        ),
    ] = False
    bpf_lb_acceleration: Annotated[
        Literal["disabled", "native", "best-effort", "testing-only"],
        Field(
            description="Forward node ports in XDP: native needs a driver that can, best-effort"
            " uses those that can, testing-only runs it in the stack."
        ),
    ] = "disabled"
    bpf_ct_global_tcp_max: Annotated[
        Entries, Field(description="TCP connections remembered, a family.")
    ] = 524_288
    bpf_ct_global_any_max: Annotated[
        Entries, Field(description="Flows of other protocols remembered, a family.")
    ] = 262_144
    bpf_nat_global_max: Annotated[
        Entries, Field(description="Entries of source translation, two a flow, a family.")
    ] = 524_288
    bpf_fragments_map_max: Annotated[
        int, Field(ge=64, le=65_535, description="Fragmented datagrams followed, a family.")
    ] = 8_192
    bpf_node_map_max: Annotated[
        Entries, Field(description="Addresses of the cluster's nodes, a family.")
    ] = 16_384
    bpf_ct_timeout_regular_tcp: Annotated[
        PositiveDuration, Field(description="An established TCP connection that is silent.")
    ] = "2h13m20s"
    bpf_ct_timeout_regular_any: Annotated[
        PositiveDuration, Field(description="A silent flow of another protocol.")
    ] = "1m0s"
    bpf_ct_timeout_service_tcp: Annotated[
        PositiveDuration, Field(description="The backend that a silent TCP connection has.")
    ] = "2h13m20s"
    bpf_ct_timeout_service_tcp_grace: Annotated[
        PositiveDuration, Field(description="The same while the connection is closing.")
    ] = "1m0s"
    bpf_ct_timeout_service_any: Annotated[
        PositiveDuration, Field(description="The backend that a silent flow has.")
    ] = "1m0s"
    bpf_ct_timeout_regular_tcp_syn: Annotated[
        PositiveDuration, Field(description="TCP that nobody answered yet.")
    ] = "1m0s"
    bpf_ct_timeout_regular_tcp_fin: Annotated[
        PositiveDuration, Field(description="TCP that is over.")
    ] = "10s"
    bpf_conntrack_accounting: Annotated[
        bool, Field(description="Count packets and bytes of each connection.")
    ] = False
    conntrack_gc_interval: Annotated[
        Duration, Field(description="Between two collections of expired entries; 0: adaptive.")
    ] = "0s"
    conntrack_gc_max_interval: Annotated[
        Duration,
        Field(
            description="Longest adaptive wait between two collections; 0: 12h, with"
            " --pod-network 5m."
        ),
    ] = "0s"

    @property
    def host_legacy_routing(self) -> bool:
        """True if packets between pods take the node's stack, where other plugins have rules."""
        return self.enable_host_legacy_routing or self.cni_chaining_mode != NONE

    @property
    def xdp(self) -> tuple[XdpMode | None, bool]:
        """Return how XDP is attached (None: not at all), and True if a driver may refuse."""
        return ACCELERATION[self.bpf_lb_acceleration]

    @property
    def pod_device_patterns(self) -> tuple[str, ...]:
        """Names of devices of pods that another plugin made."""
        return tuple(name.strip() for name in self.pod_devices.split(",") if name.strip())

    @property
    def conntrack_timeouts_s(self) -> dict[str, int]:
        """Whole seconds, at least one, by the name of the option without its prefix."""
        prefix = "bpf_ct_timeout_"
        return {
            name.removeprefix(prefix): max(1, round(parse_duration(getattr(self, name))))
            for name in DatapathOptions.model_fields
            if name.startswith(prefix)
        }

    @property
    def conntrack_gc_s(self) -> tuple[float, float]:
        """Wait between collections and longest wait, in seconds; 0: the default."""
        return parse_duration(self.conntrack_gc_interval), parse_duration(
            self.conntrack_gc_max_interval
        )

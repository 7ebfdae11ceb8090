# SPDX-License-Identifier: Apache-2.0
"""The agent's options: one validated model; `cilia.program.options` says where they are read from.

An option has the field's name for it where there is one (`--kube-proxy-replacement`,
`--bpf-lb-map-max`). Unknown options are errors.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cilia.agent.budgets import parse_budgets
from cilia.cluster.options import ClusterOptions
from cilia.datapath.options import PacketOptions
from cilia.loadbalancer.map_options import MapOptions
from cilia.loadbalancer.options import ServiceOptions
from cilia.loadbalancer.socket_options import SocketOptions
from cilia.program.values import ListenAddress

DEFAULT_INSTANCE = "cilia"

# Primes, so that every order of positions reaches all of a table (those that the field offers).
MAGLEV_TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)


def _port_range(text: str) -> tuple[int, int]:
    first, comma, last = text.replace("-", ",").partition(",")
    if not comma or not first.isdigit() or not last.isdigit():
        raise ValueError(f"{text!r} is no range: expected FIRST,LAST, e.g. 30000,32767")
    if not 0 < int(first) <= int(last) <= 65535:
        raise ValueError(f"{text!r} is no range of ports")
    return int(first), int(last)


class AgentConfig(ClusterOptions, ServiceOptions, SocketOptions, PacketOptions, MapOptions):
    """Everything that a person may set, with its default; frozen once read."""

    instance: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$",
            description="Name under which this agent keeps its state, pins and lock.",
        ),
    ] = DEFAULT_INSTANCE
    k8s_manifests: Annotated[
        Path | None,
        Field(description="Directory of Kubernetes YAML to read and watch for changes."),
    ] = None
    node_name: Annotated[
        str, Field(min_length=1, description="Name of this node's Node object.")
    ] = Field(default_factory=socket.gethostname)
    devices: Annotated[
        str,
        Field(
            description="Comma list of device name patterns whose addresses serve node ports"
            " (eth0, eth+, !eth9); default: found by their routes."
        ),
    ] = ""
    kube_proxy_replacement: Annotated[
        bool, Field(description="Serve NodePort, LoadBalancer and ExternalIPs too.")
    ] = True
    enable_external_ips: Annotated[
        bool, Field(description="Serve the externalIPs of services.")
    ] = True
    enable_service_topology: Annotated[
        bool, Field(description="Follow zone hints and the preference for the own node.")
    ] = False
    node_port_range: Annotated[
        str, Field(description="First and last node port, as FIRST,LAST.")
    ] = "30000,32767"
    bpf_lb_algorithm: Annotated[
        Literal["random", "maglev", "least-connections"],
        Field(
            description="How packets choose a backend; sockets choose at random. With"
            " least-connections sockets choose by their number of connections, packets by maglev."
        ),
    ] = "random"
    bpf_lb_algorithm_annotation: Annotated[
        bool, Field(description="Let a service choose by service.cilium.io/lb-algorithm.")
    ] = False
    bpf_lb_maglev_table_size: Annotated[
        int, Field(description="Positions of a Maglev table, a prime: 251, 509, ... 131071.")
    ] = 16381
    bpf_lb_mode: Annotated[
        Literal["snat", "dsr", "hybrid"],
        Field(description="How traffic for a backend on another node is forwarded."),
    ] = "snat"
    bpf_lb_mode_annotation: Annotated[
        bool, Field(description="Let a service choose by service.cilium.io/forwarding-mode.")
    ] = False
    bpf_lb_external_clusterip: Annotated[
        bool, Field(description="Cluster addresses answer traffic from outside the cluster too.")
    ] = False
    bpf_lb_source_range_all_types: Annotated[
        bool, Field(description="Check source ranges at every address of a service.")
    ] = False
    bpf_lb_enable_wildcard_entries: Annotated[
        bool, Field(description="Answer for unknown ports of known addresses.")
    ] = True
    enable_ipv4: Annotated[bool, Field(description="Program IPv4 addresses.")] = True
    enable_ipv6: Annotated[bool, Field(description="Program IPv6 addresses.")] = True
    state_dir: Annotated[
        Path | None, Field(description="Directory for the socket and state; default /run/INSTANCE.")
    ] = None
    bpf_root: Annotated[
        Path, Field(description="Where the BPF file system is (mounted there if it is not).")
    ] = Path("/sys/fs/bpf")
    cgroup_root: Annotated[
        Path | None,
        Field(description="cgroup v2 directory whose processes are served; default: its root."),
    ] = None
    lb_verify_interval_s: Annotated[
        int,
        Field(
            ge=0,
            description="Seconds between two comparisons of the load-balancer maps with the"
            " tables; 0: never.",
        ),
    ] = 300
    prometheus_serve_addr: Annotated[
        ListenAddress, Field(description="Serve /metrics on HOST:PORT (loopback if no host).")
    ] = None
    agent_health_port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="Serve /healthz, /livez and /readyz on this port of 127.0.0.1; 0: not.",
        ),
    ] = 0
    statedb_history: Annotated[
        int,
        Field(ge=0, le=100_000, description="Past states of the tables kept for --at-revision."),
    ] = 32
    statedb_budget: Annotated[
        str,
        Field(
            description="MiB that a table is meant to stay within: one number for all, TABLE=MIB"
            " for single ones, by commas. The status marks a table that is over."
        ),
    ] = "256"
    dry_run: Annotated[
        bool,
        Field(description="Do everything on in-memory maps, show what would be programmed, end."),
    ] = False

    @field_validator("bpf_lb_maglev_table_size")
    @classmethod
    def _maglev_table_size(cls, value: int) -> int:
        if value not in MAGLEV_TABLE_SIZES:
            raise ValueError(f"is not one of {', '.join(map(str, MAGLEV_TABLE_SIZES))}")
        return value

    @field_validator("node_port_range")
    @classmethod
    def _node_port_range(cls, value: str) -> str:
        first, last = _port_range(value)
        return f"{first},{last}"

    @field_validator("statedb_budget")
    @classmethod
    def _statedb_budget(cls, value: str) -> str:
        parse_budgets(value)
        return value

    @property
    def table_budgets(self) -> dict[str, int]:
        """Bytes by table; see `cilia.agent.budgets`."""
        return parse_budgets(self.statedb_budget)

    @property
    def node_ports(self) -> tuple[int, int]:
        """First and last node port."""
        return _port_range(self.node_port_range)

    @property
    def run_dir(self) -> Path:
        return self.state_dir or Path("/run") / self.instance

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "cilia.sock"

    @property
    def pin_dir(self) -> Path:
        return self.bpf_root / self.instance

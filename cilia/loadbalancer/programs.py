# SPDX-License-Identifier: Apache-2.0
"""What the load balancer tells the programs: which sockets are translated, how packets are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bpf.maps.lb_numbers import Algorithm
from cilia.datapath.packets import constant
from cilia.loadbalancer.options import LoadBalancerOptions

if TYPE_CHECKING:
    from bpf.sock import SockConfig

__all__ = ["packet_constants", "sock_config"]


def packet_constants(options: LoadBalancerOptions) -> dict[str, bytes]:
    """Return the `const volatile` variables of packet programs."""
    seed4, seed6 = options.flow_hash_seeds
    values = {
        "lb_algorithm": Algorithm.named(options.bpf_lb_algorithm),
        "lb_hash4_seed": seed4,
        "lb_hash6_seed": seed6,
        "lb_maglev_size": options.bpf_lb_maglev_table_size,
        "nat_min_port": options.node_port_max + 1,
        "nat_max_port": 65535,
        "nodeport_dsr": options.bpf_lb_mode != "snat" or options.bpf_lb_mode_annotation,
        "nodeport_dispatch": options.bpf_lb_dsr_dispatch == "ipip",
        "lb_reject": options.service_no_backend_response == "reject",
    }
    return {name: constant(value) for name, value in values.items()}


def sock_config(options: LoadBalancerOptions, cgroup: Path) -> SockConfig:
    """Return where the programs of sockets are pinned and what they are told."""
    from bpf.sock import SockConfig  # loads libbpf

    return SockConfig(
        options.pin_dir,
        cgroup,
        service_entries=options.bpf_lb_map_max,
        own_entries=options.own_map_sizes,
        translate=options.bpf_lb_sock,
        host_only=options.bpf_lb_sock_hostns_only,
        protect_ports=options.node_port_bind_protection and options.kube_proxy_replacement,
        no_backend=options.service_no_backend_response,
        algorithm=Algorithm.named(options.bpf_lb_algorithm),
        algorithm_annotation=options.bpf_lb_algorithm_annotation,
        wildcard_entries=options.bpf_lb_enable_wildcard_entries,
    )

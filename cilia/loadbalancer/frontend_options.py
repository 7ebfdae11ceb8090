# SPDX-License-Identifier: Apache-2.0
"""The agent's options on frontends: which are served, how a backend is chosen and reached."""

from __future__ import annotations

import base64
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from cilia.program.options import ProgramConfig

__all__ = ["MAGLEV_TABLE_SIZES", "FrontendOptions"]

# Primes, so that every order of positions reaches all of a table (those that the field offers).
MAGLEV_TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)

#: Of the Maglev seed: four for the tables, four for the hash of IPv4, four for that of IPv6.
SEED_BYTES = 12


def _port_range(text: str) -> tuple[int, int]:
    first, comma, last = text.replace("-", ",").partition(",")
    if not comma or not first.isdigit() or not last.isdigit():
        raise ValueError(f"{text!r} is no range: expected FIRST,LAST, e.g. 30000,32767")
    if not 0 < int(first) <= int(last) <= 65535:
        raise ValueError(f"{text!r} is no range of ports")
    return int(first), int(last)


def _seed(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError(f"{text!r} is not base64") from None
    if len(raw) != SEED_BYTES:
        raise ValueError(
            f"has {len(raw)} bytes, not {SEED_BYTES}: make one with head -c12 /dev/urandom | base64"
        )
    return text


class FrontendOptions(ProgramConfig):
    """Types and families that are served, algorithm, forwarding mode, node ports."""

    kube_proxy_replacement: Annotated[
        bool, Field(description="Serve NodePort, LoadBalancer and ExternalIPs too.")
    ] = True
    enable_external_ips: Annotated[
        bool, Field(description="Serve the externalIPs of services.")
    ] = True
    enable_service_topology: Annotated[
        bool, Field(description="Follow zone hints and the preference for the own node.")
    ] = True
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
    bpf_lb_internal_policy_all_types: Annotated[
        bool,
        Field(
            description="Inside the cluster internalTrafficPolicy counts at every address of a"
            " service, not at cluster addresses alone."
        ),
    ] = False
    bpf_lb_source_range_all_types: Annotated[
        bool, Field(description="Check source ranges at every address of a service.")
    ] = False
    bpf_lb_source_range_inside: Annotated[
        bool,
        Field(description="Check source ranges for pods and programs of the node too."),
    ] = True
    bpf_lb_enable_wildcard_entries: Annotated[
        bool, Field(description="Answer for unknown ports of known addresses.")
    ] = True
    enable_ipv4: Annotated[bool, Field(description="Program IPv4 addresses.")] = True
    enable_ipv6: Annotated[bool, Field(description="Program IPv6 addresses.")] = True
    lb_verify_interval_s: Annotated[
        int,
        Field(
            ge=0,
            description="Seconds between two comparisons of the load-balancer maps with the"
            " tables; 0: never.",
        ),
    ] = 300
    bpf_lb_dsr_dispatch: Annotated[
        Literal["opt", "ipip"],
        Field(description="How packets reach the backend's node in mode dsr."),
    ] = "opt"
    bpf_lb_maglev_hash_seed: Annotated[
        str,
        Field(
            description="Seed of the Maglev tables and of the hash of flows, 12 bytes in base64;"
            " the same on all nodes of a cluster."
        ),
        AfterValidator(_seed),
    ] = "JLfvgnHc2kaSUFaI"

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

    @cached_property
    def _node_ports(self) -> tuple[int, int]:
        return _port_range(self.node_port_range)

    @property
    def node_port_min(self) -> int:
        """First port of node ports."""
        return self._node_ports[0]

    @property
    def node_port_max(self) -> int:
        """Last port of node ports."""
        return self._node_ports[1]

    @property
    def tunnel(self) -> bool:
        """True: without kube-proxy's replacement, LoadBalancer frontends are served all the same,
        as the field does with tunnels. No routing mode turns it off yet.
        """
        return True

    @cached_property
    def maglev_seed(self) -> bytes:
        """The whole seed, from which the tables follow."""
        return base64.b64decode(self.bpf_lb_maglev_hash_seed)

    @property
    def flow_hash_seeds(self) -> tuple[int, int]:
        """Of IPv4 and of IPv6."""
        raw = self.maglev_seed
        return int.from_bytes(raw[4:8], "big"), int.from_bytes(raw[8:], "big")

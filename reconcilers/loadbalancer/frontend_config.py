# SPDX-License-Identifier: Apache-2.0
"""Settings that decide how frontends are programmed, for the whole node."""

from typing import Literal, Protocol


class FrontendConfig(Protocol):
    """Read-only options by their names; the feature's options model has them."""

    @property
    def kube_proxy_replacement(self) -> bool: ...

    @property
    def tunnel(self) -> bool: ...

    @property
    def bpf_lb_algorithm(self) -> Literal["random", "maglev", "least-connections"]:
        """How a backend is chosen where a service does not say."""
        ...

    @property
    def bpf_lb_algorithm_annotation(self) -> bool:
        """True if a service may say."""
        ...

    @property
    def bpf_lb_maglev_table_size(self) -> int:
        """A prime above the number of backends of any service."""
        ...

    @property
    def maglev_seed(self) -> bytes:
        """The same on all nodes, so that a client keeps its backend whichever node it comes by."""
        ...

    @property
    def bpf_lb_mode(self) -> Literal["snat", "dsr", "hybrid"]:
        """How a node port's traffic is forwarded to another node; a service may say likewise."""
        ...

    @property
    def bpf_lb_mode_annotation(self) -> bool: ...

    @property
    def bpf_lb_external_clusterip(self) -> bool:
        """True if cluster addresses also answer packets that come from outside the node."""
        ...

    @property
    def bpf_lb_internal_policy_all_types(self) -> bool:
        """True if the internal policy counts at external addresses too."""
        ...

    @property
    def bpf_lb_source_range_all_types(self) -> bool: ...

    @property
    def bpf_lb_source_range_inside(self) -> bool:
        """True if source ranges are for pods and this node too."""
        ...

    @property
    def bpf_lb_enable_wildcard_entries(self) -> bool:
        """True if unknown ports of a known address are answered, not routed away."""
        ...

    @property
    def enable_scale_to_zero(self) -> bool:
        """True if frontends of services that wake up by traffic are marked."""
        ...

    @property
    def node_port_min(self) -> int: ...

    @property
    def node_port_max(self) -> int: ...

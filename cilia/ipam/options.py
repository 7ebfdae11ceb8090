# SPDX-License-Identifier: Apache-2.0
"""The agent's options on addresses for pods."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final

from pydantic import Field, ValidationInfo, field_validator

from cilia.program.instance import InstanceOptions
from tables.addressing import Prefix

__all__ = ["IPAMOptions"]

KUBERNETES: Final = "kubernetes"
STATIC: Final = "static"

#: Modes of the field whose behaviour is not built.
NOT_BUILT: Final = (
    "cluster-pool",
    "multi-pool",
    "crd",
    "eni",
    "azure",
    "alibabacloud",
    "delegated-plugin",
)

#: With fewer, a prefix has no room for a gateway and a pod.
LEAST_HOST_BITS: Final = 2


class IPAMOptions(InstanceOptions):
    """Where the addresses of pods come from."""

    ipam: Annotated[
        str,
        Field(
            description="Where the addresses of pods come from: kubernetes (spec.podCIDRs of the"
            " Node object) or static (--ipv4-range, --ipv6-range)."
        ),
    ] = KUBERNETES
    ipv4_range: Annotated[
        str, Field(description="With --ipam=static: IPv4 prefix of this node's pods.")
    ] = ""
    ipv6_range: Annotated[
        str, Field(description="With --ipam=static: IPv6 prefix of this node's pods.")
    ] = ""

    @field_validator("ipam")
    @classmethod
    def _mode(cls, value: str) -> str:
        if value in NOT_BUILT:
            raise ValueError(
                f"{value} is not built: say kubernetes (spec.podCIDRs of the Node object), or"
                " static with --ipv4-range and --ipv6-range"
            )
        if value not in (KUBERNETES, STATIC):
            raise ValueError(f"{value!r} is no mode: say {KUBERNETES} or {STATIC}")
        return value

    @field_validator("ipv4_range", "ipv6_range")
    @classmethod
    def _range(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        network = ipaddress.ip_network(value)
        wanted = 6 if info.field_name == "ipv6_range" else 4
        if network.version != wanted:
            raise ValueError(f"{value} is no prefix of IPv{wanted}")
        if network.max_prefixlen - network.prefixlen < LEAST_HOST_BITS:
            raise ValueError(
                f"{value} has no room: a pool has at least {1 << LEAST_HOST_BITS} addresses"
            )
        return value

    @property
    def static_pools(self) -> tuple[Prefix, ...]:
        """The ranges that were given."""
        return tuple(Prefix.parse(text) for text in (self.ipv4_range, self.ipv6_range) if text)

# SPDX-License-Identifier: Apache-2.0
"""The agent's options on masquerading, with the field's names."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cilia.datapath.options import DatapathOptions
from cilia.datapath.packets import constant
from cilia.ipam.options import IPAMOptions
from tables.addressing import Prefix

__all__ = ["MasqueradeOptions", "packet_constants"]

#: Options that mean nothing where another plugin gives pods their network.
_OF_POD_NETWORK: Final = (
    "enable_ipv4_masquerade",
    "enable_ipv6_masquerade",
    "enable_bpf_masquerade",
    "enable_ip_masq_agent",
    "ipv4_native_routing_cidr",
    "ipv6_native_routing_cidr",
)


class MasqueradeOptions(IPAMOptions, DatapathOptions):
    """What pods of this node send to the world."""

    enable_ipv4_masquerade: Annotated[
        bool,
        Field(
            description="With --pod-network: IPv4 packets of pods to the world leave with an"
            " address of the node."
        ),
    ] = True
    enable_ipv6_masquerade: Annotated[bool, Field(description="The same for IPv6.")] = True
    enable_bpf_masquerade: Annotated[
        bool,
        Field(
            description="Masquerade by the programs of the node's devices; nothing else is built,"
            " so false is refused while a family is masqueraded."
        ),
    ] = True
    ipv4_native_routing_cidr: Annotated[
        str,
        Field(
            description="Prefix whose routers know the way to pods: packets to it keep their"
            " source. Empty: the pods' prefixes of all Node objects."
        ),
    ] = ""
    ipv6_native_routing_cidr: Annotated[str, Field(description="The same for IPv6.")] = ""
    enable_ip_masq_agent: Annotated[
        bool,
        Field(
            description="Read further prefixes from a file of ip-masq-agent"
            " (--ip-masq-agent-config-path), and again when it changes."
        ),
    ] = False
    ip_masq_agent_config_path: Annotated[
        Path, Field(description="That file: YAML or JSON with nonMasqueradeCIDRs.")
    ] = Path("/etc/config/ip-masq-agent")

    @field_validator("ipv4_native_routing_cidr", "ipv6_native_routing_cidr")
    @classmethod
    def _prefix(cls, value: str, info: ValidationInfo) -> str:
        wanted = 6 if info.field_name == "ipv6_native_routing_cidr" else 4
        if value and ipaddress.ip_network(value).version != wanted:
            raise ValueError(f"{value} is no prefix of IPv{wanted}")
        return value

    @model_validator(mode="after")
    def _by_programs_of_ours(self) -> Self:
        if not self.pod_network:
            for name in _OF_POD_NETWORK:
                if name in self.model_fields_set and getattr(self, name):
                    raise ValueError(
                        f"--{name.replace('_', '-')} is for pods that have their network from"
                        " cilia: leave it out without --pod-network, the other plugin masquerades"
                    )
        elif self.masqueraded and not self.enable_bpf_masquerade:
            raise ValueError(
                "masquerading by netfilter is not built: leave --enable-bpf-masquerade on, or say"
                " --enable-ipv4-masquerade=false and --enable-ipv6-masquerade=false"
            )
        elif self.enable_ip_masq_agent and not self.masqueraded:
            raise ValueError(
                "--enable-ip-masq-agent names what is not masqueraded, and nothing is: leave"
                " --enable-ipv4-masquerade or --enable-ipv6-masquerade on"
            )
        return self

    @property
    def masqueraded(self) -> frozenset[bool]:
        """The families that are masqueraded: True for IPv6, False for IPv4."""
        wanted = {False: self.enable_ipv4_masquerade, True: self.enable_ipv6_masquerade}
        return frozenset(v6 for v6, on in wanted.items() if on and self.pod_network)

    @property
    def native_routing_prefixes(self) -> dict[bool, Prefix]:
        """The prefix that was given, by family."""
        given = {False: self.ipv4_native_routing_cidr, True: self.ipv6_native_routing_cidr}
        return {v6: Prefix.parse(text) for v6, text in given.items() if text}


def packet_constants(options: MasqueradeOptions) -> dict[str, bytes]:
    """Return the `const volatile` variables of packet programs."""
    return {
        name: constant(v6 in options.masqueraded)
        for v6, name in ((False, "masquerade4"), (True, "masquerade6"))
    }

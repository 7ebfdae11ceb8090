# SPDX-License-Identifier: Apache-2.0
"""The agent's options on the node's own network."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from cilia.program.options import ProgramConfig
from tables.addressing import Prefix

__all__ = ["NodeOptions"]


def _network_list(text: str) -> str:
    """The same networks, each written in its one way: `10.0.0.7` is `10.0.0.7/32`."""
    parts = [part.strip() for part in text.split(",")]
    return ",".join(str(ipaddress.ip_network(part)) for part in parts if part)


class NodeOptions(ProgramConfig):
    """Devices of the node that count, and their addresses for node ports."""

    devices: Annotated[
        str,
        Field(
            description="Comma list of device name patterns whose addresses serve node ports"
            " (eth0, eth+, !eth9); default: found by their routes."
        ),
    ] = ""

    nodeport_addresses: Annotated[
        str,
        Field(
            description="Comma list of CIDRs: addresses of those devices in them serve node ports;"
            " default: the primary IPv4 and IPv6 address of each."
        ),
        AfterValidator(_network_list),
    ] = ""

    procfs: Annotated[
        Path,
        Field(
            description="Where the node's proc file system is: parameters of the kernel are written"
            " below its sys/. In a container /proc/sys is read-only, and the node's is elsewhere."
        ),
    ] = Path("/proc")

    @property
    def node_port_ranges(self) -> tuple[Prefix, ...]:
        return tuple(map(Prefix.parse, filter(None, self.nodeport_addresses.split(","))))

    @property
    def device_patterns(self) -> tuple[str, ...]:
        return tuple(name for name in self.devices.split(",") if name)

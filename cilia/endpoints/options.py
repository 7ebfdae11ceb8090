# SPDX-License-Identifier: Apache-2.0
"""The agent's options on pods that have their network from us."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, field_validator

from cilia.datapath.options import DatapathOptions
from cilia.endpoints.state_files import CNI_SOCKET
from cilia.identity.options import IdentityOptions
from cilia.ipam.options import IPAMOptions

__all__ = ["EndpointOptions"]

LEAST_MTU: Final = 1280


class EndpointOptions(IPAMOptions, IdentityOptions, DatapathOptions):
    """Whether cilia is the pod network of this node, and how."""

    routing_mode: Annotated[
        str, Field(description="How packets reach pods of other nodes: native, by the network.")
    ] = "native"
    mtu: Annotated[
        int, Field(ge=0, le=65_520, description="MTU of pods' devices; 0: that of the node's.")
    ] = 0

    cni_conf_path: Annotated[
        Path | None,
        Field(
            description="Directory of the container runtime's network lists: the one that names"
            " cilia is written there when the agent can serve. Not written if empty."
        ),
    ] = None
    cni_bin_path: Annotated[
        Path | None,
        Field(
            description="Directory of the container runtime's plugins: cilia-cni is put there."
            " Not if empty."
        ),
    ] = None
    cni_exclusive: Annotated[
        bool,
        Field(description="Set aside lists of other networks in --cni-conf-path (*.cilium_bak)."),
    ] = True
    read_cni_conf: Annotated[
        Path | None,
        Field(description="A list of one's own with the plugin cilia-cni, used as it is."),
    ] = None

    @field_validator("mtu")
    @classmethod
    def _mtu(cls, value: int) -> int:
        if 0 < value < LEAST_MTU:
            raise ValueError(f"{value} is too small: IPv6 needs {LEAST_MTU} (RFC 8200, 5)")
        return value

    @field_validator("routing_mode")
    @classmethod
    def _routing_mode(cls, value: str) -> str:
        if value == "tunnel":
            raise ValueError(
                "tunnel is not built: say native, and have the network route pods' prefixes"
            )
        if value != "native":
            raise ValueError(f"{value!r} is no mode: say native")
        return value

    @property
    def cni_socket_path(self) -> Path:
        """Where the CNI plugin finds the agent."""
        return self.run_dir / CNI_SOCKET

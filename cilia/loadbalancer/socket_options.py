# SPDX-License-Identifier: Apache-2.0
"""The agent's options on translation at sockets, named as in the field.

The defaults are those that the field has with kube-proxy's replacement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cilia.linux.namespaces import DIRECTORIES
from cilia.loadbalancer.connections.socket_termination import TerminationConfig
from cilia.program.options import ProgramConfig

__all__ = ["SocketOptions"]


class SocketOptions(ProgramConfig):
    """Which sockets are translated, what they are refused, and when they are closed."""

    bpf_lb_sock: Annotated[
        bool, Field(description="Translate at the socket; without, packets are translated.")
    ] = True
    bpf_lb_sock_hostns_only: Annotated[
        bool,
        Field(description="Translate sockets of the node alone; those of pods send packets to it."),
    ] = False
    bpf_lb_sock_terminate_pod_connections: Annotated[
        bool,
        Field(description="Close sockets of pods too when their backend leaves its service."),
    ] = True
    lb_sock_terminate_all_protos: Annotated[
        bool, Field(description="Close TCP sockets of removed backends too, not only UDP.")
    ] = False
    netns_directories: Annotated[
        str,
        Field(
            description="Comma list of directories with network namespaces of pods; those of"
            " processes in /proc are found as well."
        ),
    ] = ",".join(map(str, DIRECTORIES))
    node_port_bind_protection: Annotated[
        bool, Field(description="Refuse listeners of the node a port that a frontend has.")
    ] = True
    service_no_backend_response: Annotated[
        Literal["reject", "drop"],
        Field(
            description="For clients of a service without backends: reject is connection refused,"
            " drop is no answer to packets and host unreachable at sockets."
        ),
    ] = "reject"

    @property
    def translated_sockets(self) -> Literal["all", "node", "none"]:
        """Whose sockets are translated when they connect."""
        if not self.bpf_lb_sock:
            return "none"
        return "node" if self.bpf_lb_sock_hostns_only else "all"

    @property
    def termination(self) -> TerminationConfig:
        """With translation for the host alone, pods have no translated sockets."""
        names = [name.strip() for name in self.netns_directories.split(",")]
        return TerminationConfig(
            tcp=self.lb_sock_terminate_all_protos,
            pods=self.bpf_lb_sock_terminate_pod_connections and not self.bpf_lb_sock_hostns_only,
            directories=tuple(Path(name) for name in names if name),
        )

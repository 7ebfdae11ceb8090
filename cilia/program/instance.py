# SPDX-License-Identifier: Apache-2.0
"""Options of one running instance of the agent: its name, its node, and where it keeps things."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cilia.program.instance_name import DEFAULT_INSTANCE, PATTERN
from cilia.program.options import ProgramConfig

__all__ = ["DEFAULT_INSTANCE", "SOCKET", "InstanceOptions"]

#: The control socket, in the state directory.
SOCKET = "cilia.sock"


class InstanceOptions(ProgramConfig):
    """Name, node, state directory and pins; what every feature of an agent may need."""

    instance: Annotated[
        str,
        Field(
            pattern=PATTERN,
            description="Name under which this agent keeps its state, pins and lock.",
        ),
    ] = DEFAULT_INSTANCE
    node_name: Annotated[
        str, Field(min_length=1, description="Name of this node's Node object.")
    ] = Field(default_factory=socket.gethostname)
    state_dir: Annotated[
        Path | None, Field(description="Directory for the socket and state; default /run/INSTANCE.")
    ] = None
    bpf_root: Annotated[
        Path, Field(description="Where the BPF file system is (mounted there if it is not).")
    ] = Path("/sys/fs/bpf")
    dry_run: Annotated[
        bool,
        Field(description="Do everything on in-memory maps, show what would be programmed, end."),
    ] = False

    @property
    def run_dir(self) -> Path:
        """Directory of the socket and the state."""
        return self.state_dir or Path("/run") / self.instance

    @property
    def socket_path(self) -> Path:
        return self.run_dir / SOCKET

    @property
    def pin_dir(self) -> Path:
        """Directory of maps, programs and links on the BPF file system."""
        return self.bpf_root / self.instance

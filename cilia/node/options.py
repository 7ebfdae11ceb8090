# SPDX-License-Identifier: Apache-2.0
"""The agent's options on the node's own network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cilia.program.options import ProgramConfig

__all__ = ["NodeOptions"]


class NodeOptions(ProgramConfig):
    """Which devices of the node count."""

    devices: Annotated[
        str,
        Field(
            description="Comma list of device name patterns whose addresses serve node ports"
            " (eth0, eth+, !eth9); default: found by their routes."
        ),
    ] = ""

    @property
    def device_patterns(self) -> tuple[str, ...]:
        return tuple(name for name in self.devices.split(",") if name)

# SPDX-License-Identifier: Apache-2.0
"""The agent's options on other plugins in the container runtime's list, beside ours."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from cilia.program.instance import InstanceOptions

__all__ = ["BEHIND", "NONE", "PORTMAP", "ChainingOptions"]

NONE: Final = "none"
PORTMAP: Final = "portmap"

#: Modes in which our plugin stands behind another one, with the usual name of that one's network.
BEHIND: Final = {
    "generic-veth": "",
    "aws-cni": "aws-cni",
    "azure": "azure",
    "flannel": "cbr0",
}
MODES: Final = (NONE, PORTMAP, *BEHIND)


class ChainingOptions(InstanceOptions):
    """Other plugins in the list of a container runtime, beside ours."""

    cni_chaining_mode: Annotated[
        str,
        Field(
            description="With --pod-network, the plugins beside ours: none; portmap, which serves"
            " host ports behind ours (without --kube-proxy-replacement); generic-veth, aws-cni,"
            " azure or flannel: another plugin before ours makes devices, addresses and routes."
        ),
    ] = NONE
    cni_chaining_target: Annotated[
        str,
        Field(
            description="Name of the network in whose list (in --cni-conf-path) our plugin is put"
            " behind the others; default: the usual one of the mode."
        ),
    ] = ""

    @field_validator("cni_chaining_mode")
    @classmethod
    def _chaining_mode(cls, value: str) -> str:
        if value not in MODES:
            raise ValueError(f"{value!r} is no mode: say one of {', '.join(MODES)}")
        return value

    @property
    def is_behind(self) -> bool:
        """True if another plugin makes pods' devices, addresses and routes."""
        return self.cni_chaining_mode in BEHIND

    @property
    def chaining_network(self) -> str:
        """Name of the network whose list gets our plugin; empty if nobody named one."""
        return self.cni_chaining_target or BEHIND.get(self.cni_chaining_mode, "")

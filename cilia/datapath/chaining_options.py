# SPDX-License-Identifier: Apache-2.0
"""The agent's options on other plugins in the container runtime's list, beside ours."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from cilia.program.instance import InstanceOptions

__all__ = ["NONE", "PORTMAP", "ChainingOptions"]

NONE: Final = "none"
PORTMAP: Final = "portmap"

#: Modes of the field whose behaviour is not built.
NOT_BUILT: Final = ("aws-cni", "azure", "flannel", "generic-veth")


class ChainingOptions(InstanceOptions):
    """Which other plugins work on a pod."""

    cni_chaining_mode: Annotated[
        str,
        Field(
            description="With --pod-network, the plugins beside ours: none, or portmap, which"
            " serves host ports behind ours (without --kube-proxy-replacement)."
        ),
    ] = NONE

    @field_validator("cni_chaining_mode")
    @classmethod
    def _chaining_mode(cls, value: str) -> str:
        if value in NOT_BUILT:
            raise ValueError(f"{value} is not built: say {NONE} or {PORTMAP}")
        if value not in (NONE, PORTMAP):
            raise ValueError(f"{value!r} is no mode: say {NONE} or {PORTMAP}")
        return value

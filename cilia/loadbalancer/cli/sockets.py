# SPDX-License-Identifier: Apache-2.0
"""Says in words whose sockets are translated, as the agent's options say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["SOCKETS", "sockets_of"]

SOCKETS: Final = {
    "all": "translated at connect, those of this node and of its pods",
    "node": "those of this node alone are translated at connect (--bpf-lb-sock-hostns-only); pods'"
    " packets are where they leave the pod",
    "none": "not translated (--bpf-lb-sock=false): programs of this node reach no Service; packets"
    " of pods and from outside are translated at devices",
}


def sockets_of(options: Mapping[str, Any]) -> str:
    """Return the key of `SOCKETS`; `options`: values by the names of options."""
    if not options["bpf-lb-sock"]:
        return "none"
    return "node" if options["bpf-lb-sock-hostns-only"] else "all"

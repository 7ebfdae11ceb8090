# SPDX-License-Identifier: Apache-2.0
"""Names that the pod network has in an agent's state directory.

They stand apart, because every agent and command knows them, and few load what is behind them.
"""

from __future__ import annotations

from typing import Final

from cilia.linux.records import name_of_record

__all__ = ["CNI_FILES", "CNI_SOCKET", "DELETE_QUEUE", "ENDPOINTS", "SUFFIX", "is_endpoint_file"]

#: Where the runtime's plugin asks.
CNI_SOCKET: Final = "cni.sock"
#: Directory of DELs that came while no agent served.
DELETE_QUEUE: Final = "cni-queue"
#: Record of what was written for the container runtime.
CNI_FILES: Final = "cni-files.json"
#: Directory with a file for each endpoint, `<id>` + SUFFIX.
ENDPOINTS: Final = "endpoints"
SUFFIX: Final = ".json"


def is_endpoint_file(name: str) -> bool:
    """Return True for names of files that `SavedEndpoints` makes."""
    return name_of_record(name).removesuffix(SUFFIX).isdigit()

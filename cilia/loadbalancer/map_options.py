# SPDX-License-Identifier: Apache-2.0
"""The agent's options on the sizes of load-balancer maps, named as in the field.

A size that differs from that of a pinned map is a migration: a map of the new size is filled beside
the old one, the programs are switched to it, and it takes the name (`bpf.loader`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cilia.program.options import ProgramConfig

__all__ = ["MapOptions"]

LARGEST = 16_777_216

Entries = Annotated[int, Field(ge=16, le=LARGEST)]
OwnEntries = Annotated[int, Field(ge=0, le=LARGEST)]


class MapOptions(ProgramConfig):
    """One size for all, and one for each map that shall have another; per family of addresses."""

    bpf_lb_map_max: Annotated[
        Entries, Field(description="Entries of each load-balancer map that has no size of its own.")
    ] = 65_536
    bpf_lb_service_map_max: Annotated[
        OwnEntries, Field(description="Frontends and their slots; 0: as --bpf-lb-map-max.")
    ] = 0
    bpf_lb_service_backend_map_max: Annotated[
        OwnEntries, Field(description="Backends; 0: as --bpf-lb-map-max.")
    ] = 0
    bpf_lb_rev_nat_map_max: Annotated[
        OwnEntries, Field(description="Ways back to a frontend; 0: as --bpf-lb-map-max.")
    ] = 0
    bpf_lb_affinity_map_max: Annotated[
        OwnEntries, Field(description="Clients that stay with a backend; 0: 65536.")
    ] = 0
    bpf_lb_source_range_map_max: Annotated[
        OwnEntries, Field(description="Source ranges; 0: as --bpf-lb-map-max.")
    ] = 0
    bpf_lb_maglev_map_max: Annotated[
        OwnEntries, Field(description="Maglev tables; 0: as --bpf-lb-map-max.")
    ] = 0
    bpf_sock_rev_map_max: Annotated[
        OwnEntries, Field(description="Sockets that were translated; 0: 65536.")
    ] = 0

    @property
    def own_map_sizes(self) -> dict[str, int]:
        """Sizes by the map's name, of those that have one of their own."""
        sizes = {
            "svc": self.bpf_lb_service_map_max,
            "be": self.bpf_lb_service_backend_map_max,
            "rev": self.bpf_lb_rev_nat_map_max,
            "aff": self.bpf_lb_affinity_map_max,
            "src": self.bpf_lb_source_range_map_max,
            "mglv": self.bpf_lb_maglev_map_max,
            "sk": self.bpf_sock_rev_map_max,
        }
        return {
            f"cilia_lb{family}_{what}": size
            for what, size in sizes.items()
            if size
            for family in (4, 6)
        }

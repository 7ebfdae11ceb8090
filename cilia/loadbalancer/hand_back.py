# SPDX-License-Identifier: Apache-2.0
"""Services handed back without an agent, on what one left pinned: before all of it is removed.

The maps are in the kernel, so whoever opens them can turn the switch and count what is left.
Connections that a socket made are none of that: their packets carry the backend's address.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from bpf.maps.ct import CT_MAPS
from bpf.maps.map import Map
from bpf.maps.nat import NAT_MAPS
from bpf.maps.switch import NAME as SWITCH
from bpf.maps.switch import Switch, SwitchState
from cilia.datapath.conntrack import ConntrackMaps
from cilia.loadbalancer.replacement import count_flows

__all__ = ["hand_back"]

LOOK_S: Final = 0.5  # nobody pushes what is left


def hand_back(maps_dir: Path, timeout_s: float, tell: Callable[[str], None]) -> bool:
    """Leave new connections to others and wait until no packets are translated here; false if some
    are after `timeout_s`. Each change of their number is told.

    Raises: NotFound when nothing is pinned there.
    """
    with closing(Switch(Map.open_pinned(maps_dir / SWITCH))) as switch:
        switch.state = SwitchState.HAND_BACK
    deadline = time.monotonic() + timeout_s
    told = -1
    with _flows(maps_dir) as flows:
        while left := count_flows(flows, int(time.monotonic())):
            if left != told:
                tell(f"{left} connections of packets are translated here")
            told = left
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_S)
    return True


@contextmanager
def _flows(maps_dir: Path) -> Iterator[ConntrackMaps]:
    """Those of packets, where the agent had any."""
    names = [name for name in (*CT_MAPS, *NAT_MAPS) if (maps_dir / name).exists()]
    opened = {name: Map.open_pinned(maps_dir / name) for name in names}
    try:
        yield ConntrackMaps.of(opened)
    finally:
        for one in opened.values():
            one.close()

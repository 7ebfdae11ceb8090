# SPDX-License-Identifier: Apache-2.0
"""Programs at the hooks of a device: as a link, or as a tc filter where the kernel has no TCX."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Final

from bpf import clsact, features
from bpf.clsact import Direction, Filter
from bpf.link import AttachType, Link
from bpf.program import Program
from bpf.xdp import XdpMode
from cilia.linux.netns import NetNS

#: Where a program of a TCX hook goes on a kernel without these.
CLSACT: Final = {
    AttachType.TCX_INGRESS: Direction.INGRESS,
    AttachType.TCX_EGRESS: Direction.EGRESS,
}

_numbers = itertools.count(1)


class HeldFilter:
    """A tc filter that can be used like a link: gone when it is closed."""

    def __init__(self, program: Program, where: Filter) -> None:
        clsact.attach(program, where)
        self._netns = NetNS.current()
        self._where = where

    def detach(self) -> None:
        """Remove the filter if it is there."""
        self._netns.run(lambda: clsact.detach(self._where))

    def __enter__(self) -> HeldFilter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()
        self._netns.close()


Held = Link | HeldFilter


def attach(ifindex: int, program: Program, hook: AttachType) -> Held:
    """Attach behind what is there, to a device of the calling thread's namespace; XDP goes to the
    driver.
    """
    if hook in CLSACT and not features.has_tcx():
        number = next(_numbers)
        return HeldFilter(program, Filter(ifindex, CLSACT[hook], priority=number, handle=number))
    flags = XdpMode.NATIVE.flags if hook == AttachType.XDP else 0
    return Link.create(program, ifindex, hook, flags=flags)

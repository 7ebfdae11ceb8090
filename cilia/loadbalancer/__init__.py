# SPDX-License-Identifier: Apache-2.0
"""From objects to ``services``, ``frontends`` and ``backends``: conversion, ownership, selection.

``conversion`` and ``endpoints`` turn Kubernetes objects into rows, ``selection`` chooses the
backends of a frontend; these are pure. ``writer`` alone writes the tables, ``reflector`` feeds it
from objects. Does not belong here: BPF maps (``reconcilers/loadbalancer``). Start with ``writer``.
"""

from cilia.loadbalancer.compiled import LOADBALANCER
from statedb.compiled import prefer

prefer(LOADBALANCER, __name__, __path__)

__all__: list[str] = []

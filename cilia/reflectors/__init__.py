# SPDX-License-Identifier: Apache-2.0
"""From outside into tables: one module for each thing that is reflected.

A reflector follows a source, gathers what comes, converts it and writes it in short transactions.
It decides nothing beyond that (``cilia.controllers`` does). Start with ``batch`` and ``services``;
``devices`` is the one that follows the kernel.

To add a source of Kubernetes objects: a module with the conversion of one object and a constructor
like ``nodes.node_reflector``; it registers the table's initializer and ends it when the source has
listed everything. ``cilia/agent/wiring.py`` runs it as a job.
"""

from cilia.controllers.loadbalancer.compiled import LOADBALANCER
from statedb.compiled import prefer

prefer(LOADBALANCER, __name__, __path__)

__all__: list[str] = []

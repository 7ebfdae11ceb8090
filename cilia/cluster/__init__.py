# SPDX-License-Identifier: Apache-2.0
"""Objects of the cluster: their source, pods, nodes, namespaces, problems.

Belongs here: which source is followed, and reflectors of objects that no other feature owns. A
reflector follows a source, gathers what comes, converts it and writes it in short transactions; it
decides nothing beyond that. Start with ``inputs`` (the source) and ``objects`` (how a table follows
it).

To add a source of Kubernetes objects: a module with the conversion of one object and a constructor
like ``nodes.node_reflector``; it registers the table's initializer, ends it when the source has
listed everything, and stalls it while some of that cannot be read. The feature's ``wiring.py`` runs
it as a job.
"""

__all__: list[str] = []

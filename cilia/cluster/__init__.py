# SPDX-License-Identifier: Apache-2.0
"""Objects of the cluster: their source, pods, nodes, namespaces, problems.

Belongs here: reflectors of objects that no other feature owns. Start with `inputs.py` (the
source), then `objects.py` (how a table follows it).
"""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""Endpoints, the local workloads: containers and pods that get a network from this node.

CNI request -> plugin -> endpoints, ip-allocations -> controller -> attachments, routes, identities.

Belongs here: requests of container runtimes (`cni/`), and what becomes of them. Policy, addresses
of other nodes and Services are features of their own. Start with `plugin.py`.
"""

__all__: list[str] = []

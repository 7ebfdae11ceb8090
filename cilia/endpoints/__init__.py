# SPDX-License-Identifier: Apache-2.0
"""Endpoints, the local workloads: containers and pods that get a network from this node.

Belongs here: requests of container runtimes (`cni/`), and what becomes of them. Policy, addresses
of other nodes and Services are features of their own.
"""

__all__: list[str] = []

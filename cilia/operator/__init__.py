# SPDX-License-Identifier: Apache-2.0
"""The cluster-wide program: one leader of several replicas does what is needed once a cluster.

Belongs here: leader election, registration of our kinds at the API server, and named jobs that only
the leader runs. What a node needs does not: without an operator, nodes go on. Start at `wiring.py`.
"""

__all__: list[str] = []

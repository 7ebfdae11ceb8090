# SPDX-License-Identifier: Apache-2.0
"""Masquerading: what workloads of this node send to the world leaves with an address of the node.

Belongs here: which destinations are not the world (`exclusions.py`), and what becomes of the flows
of workloads that are gone (`ended_flows.py`). The translation itself is `bpf/lib/masquerade.h` and
`bpf/lib/nat.h`. Start with `exclusions.py`.
"""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""The node program: wires edges, tables, controllers and reconcilers, and serves them.

Belongs here: what only the agent process needs (its options, its lock, its jobs, its socket). What
moves or holds state does not. Start at `wiring.py`.
"""

__all__: list[str] = []

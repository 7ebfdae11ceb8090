# SPDX-License-Identifier: Apache-2.0
"""Maps and programs of the node: opening, devices, conntrack, drift.

Belongs here: what every feature of the datapath shares. Start with `wiring.py`, then `opening.py`.
"""

__all__: list[str] = []

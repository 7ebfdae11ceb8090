# SPDX-License-Identifier: Apache-2.0
"""The node's own network: devices, addresses and routes that netlink reports.

Belongs here: netlink to tables, and what follows from them. Start with `wiring.py`.
"""

__all__: list[str] = []

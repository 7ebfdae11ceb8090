# SPDX-License-Identifier: Apache-2.0
"""Connections of Services: who has them, and who ends them.

Belongs here: sockets and flows to backends that go. Start: `socket_termination.py`.
"""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""Script commands and the application that golden scripts run against.

Belongs here: commands that need the agent's wiring. Start with `application.py`.
"""

__all__: list[str] = []

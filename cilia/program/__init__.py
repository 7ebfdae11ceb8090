# SPDX-License-Identifier: Apache-2.0
"""What every long-running program has: options, logs, jobs, health of its parts, HTTP listeners.

Belongs here: what the agent and the operator share and that knows neither of them. Not: what moves
or holds state. Start at `options.py`.
"""

__all__: list[str] = []

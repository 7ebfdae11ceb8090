# SPDX-License-Identifier: Apache-2.0
"""Errors of the agent program.

AgentError    one sentence for the person at the terminal; ends the program with exit code 1
"""


class AgentError(Exception):
    """Something that the person must change before the agent can run."""

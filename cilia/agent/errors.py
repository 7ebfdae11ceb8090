# SPDX-License-Identifier: Apache-2.0
"""Errors of the agent program.

ProgramError
  AgentError    one sentence for the person at the terminal; ends the program with exit code 1
"""

from cilia.program.errors import ProgramError


class AgentError(ProgramError):
    """Something that the person must change before the agent can run."""

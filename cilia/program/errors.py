# SPDX-License-Identifier: Apache-2.0
"""Errors of long-running programs.

ProgramError    one sentence for the person at the terminal; ends the program with exit code 1
"""


class ProgramError(Exception):
    """Something that the person must change before the program can run."""

# SPDX-License-Identifier: Apache-2.0
"""The commands that every script has."""

from __future__ import annotations

from cilia.script.checks import CHECK_COMMANDS
from cilia.script.commands import Command
from cilia.script.control import CONTROL_COMMANDS
from cilia.script.files import FILE_COMMANDS

GENERIC_COMMANDS: tuple[Command, ...] = (*FILE_COMMANDS, *CHECK_COMMANDS, *CONTROL_COMMANDS)

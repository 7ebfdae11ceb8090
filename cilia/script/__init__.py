# SPDX-License-Identifier: Apache-2.0
"""The script language: golden tests, and the commands of the live shell.

Belongs here: archives, the language, its generic commands, the runner of script files, the
sessions of the shell. Does not: commands that know a table, an API server or a map; they come as
values, from the packages that own these. Standard library only, and nothing else of the project;
`documents` alone needs two libraries, and is imported by nobody in this package.

Start reading at `engine`; the language is described in docs/scripts.md.
"""

from cilia.script.application import Application, hive_commands
from cilia.script.commands import Command, CommandLike, CommandSet, Flag, Output
from cilia.script.conditions import Condition
from cilia.script.engine import Ending, Engine
from cilia.script.errors import (
    CommandFailed,
    DeadlineExceeded,
    ScriptError,
    ScriptFailed,
    UsageError,
)
from cilia.script.generic import GENERIC_COMMANDS
from cilia.script.runner import Suite, run_file
from cilia.script.sessions import Sessions
from cilia.script.state import State

__all__ = [
    "GENERIC_COMMANDS",
    "Application",
    "Command",
    "CommandFailed",
    "CommandLike",
    "CommandSet",
    "Condition",
    "DeadlineExceeded",
    "Ending",
    "Engine",
    "Flag",
    "Output",
    "ScriptError",
    "ScriptFailed",
    "Sessions",
    "State",
    "Suite",
    "UsageError",
    "hive_commands",
    "run_file",
]

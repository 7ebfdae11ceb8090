# SPDX-License-Identifier: Apache-2.0
"""The help of commands and conditions, generated from their values."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cilia.script.flags import flag_help, synopsis
from cilia.script.goregexp import compile_re2

if TYPE_CHECKING:
    from cilia.script.commands import CommandLike
    from cilia.script.conditions import Condition
    from cilia.script.state import State


def usage_line(command: CommandLike) -> str:
    """The command as one types it; `[&]` stands for «may run in the background»."""
    background = " [&]" if getattr(command, "start", None) else ""
    return f"{command.name} {synopsis(command.flags)}{command.usage}".rstrip() + background


def command_help(command: CommandLike, *, verbose: bool) -> str:
    """Usage and summary; if verbose also the details and each flag."""
    lines = [usage_line(command), f"\t{command.summary}"]
    if verbose and command.detail:
        lines.append("")
        for sentence in command.detail:
            lines += [f"\t{line}" for line in textwrap.wrap(sentence, 72)]
    if verbose and command.flags:
        lines += ["", "\tFlags:", *(f"\t{line}" for line in flag_help(command.flags))]
    return "\n".join(lines) + "\n"


def list_commands(commands: Mapping[str, CommandLike], pattern: str, *, verbose: bool) -> str:
    """The help of every command whose name the RE2 pattern matches, by name."""
    regexp = compile_re2(pattern)
    found = [commands[name] for name in sorted(commands) if regexp.matches(name)]
    return "".join(command_help(command, verbose=verbose) for command in found)


def list_conditions(conditions: Iterable[Condition], state: State) -> str:
    """One entry a condition, and whether it holds now."""
    parts = []
    for condition in sorted(conditions, key=lambda condition: condition.name):
        if condition.prefix:
            parts.append(f"[{condition.name}:*]\n\t{condition.summary}\n")
        else:
            active = " (active)" if condition.holds(state, "") else ""
            parts.append(f"[{condition.name}]{active}\n\t{condition.summary}\n")
    return "".join(parts)

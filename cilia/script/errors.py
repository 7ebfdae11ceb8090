# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a script, and who may excuse it.

ScriptError
├── CommandFailed           ordinary failure: `!` and `?` excuse it
│   ├── UsageError          wrong number or form of arguments
│   └── DeadlineExceeded    ran out of time: only `?` excuses it
└── Unexcused               the script itself is wrong: no prefix excuses it, no retry helps
    ├── ParseError          a line, an archive or a work directory that cannot be read
    ├── UnknownName         no such command or condition
    ├── FlagError           flags that do not parse
    └── BackgroundFailed    a command collected by `wait` ended other than its prefix demanded

ScriptFailed                the verdict on a script: where, in which section, why
StopScript, SkipScript      not errors: the commands `stop` and `skip`
"""

from __future__ import annotations

from dataclasses import dataclass


class ScriptError(Exception):
    """Base of everything that this package raises on purpose, but for the verdict."""


class CommandFailed(ScriptError):
    """A command did not do what it was asked to."""


class UsageError(CommandFailed):
    """A command was given the wrong number or form of arguments."""


class DeadlineExceeded(CommandFailed, TimeoutError):
    """The script's time is over, so that nobody knows how the command would have ended."""


class Unexcused(ScriptError):
    """An error of the script itself."""


class ParseError(Unexcused):
    """A line that does not follow the grammar."""


class UnknownName(Unexcused):
    """A command or a condition that does not exist."""


class FlagError(Unexcused):
    """Flags that the command does not have, or values that they cannot take."""


class BackgroundFailed(Unexcused):
    """Background commands ended other than their own prefixes demanded."""


@dataclass(eq=False)
class ScriptFailed(Exception):
    """The verdict on a script that failed.

    `section` is the text of the comment line that opened the section (empty: before the first),
    `log` what its commands said in the last round, diffs included.
    """

    file: str
    line: int
    command: str
    reason: str
    section: str = ""
    section_line: int = 0
    retries: int = 0
    log: str = ""

    def __str__(self) -> str:
        gist, *rest = self.reason.split("\n") if self.reason else [""]
        command = f"{self.command}: " if self.command else ""
        lines = [f"{self.file}:{self.line}: {command}{gist}", *(f"  {line}" for line in rest)]
        if self.section:
            lines.append(f"  section, line {self.section_line}: {self.section}")
        if self.retries:
            lines.append(f"  after {self.retries} retries of the section; the last one:")
        lines.extend(f"  {line}" for line in self.log.splitlines())
        return "\n".join(lines)


class StopScript(Exception):
    """`stop`: the script ends here and has succeeded."""


class SkipScript(Exception):
    """`skip`: the script ends here and counts as not run."""

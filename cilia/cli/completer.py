# SPDX-License-Identifier: Apache-2.0
"""What Tab offers in the live shell: commands, their flags, their arguments, files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PREFIXES = ("!", "?", "*", "!*")


class Completer:
    """Candidates for the word under the cursor, from the agent's description of its commands."""

    def __init__(self, commands: Sequence[Mapping[str, Any]]) -> None:
        self._commands = {command["name"]: command for command in commands}
        self._candidates: list[str] = []

    def complete(self, text: str, state: int) -> str | None:
        """As readline asks: candidate number `state` for `text`, None when there are no more."""
        if state == 0:
            import readline

            line = readline.get_line_buffer()[: readline.get_begidx()]
            self._candidates = self.candidates(line, text)
        return self._candidates[state] if state < len(self._candidates) else None

    def candidates(self, line: str, text: str) -> list[str]:
        """What can stand after `line` and begins with `text`, sorted.

        >>> commands = [{"name": "db/show", "flags": ["--out"], "words": ["frontends"]}]
        >>> completer = Completer(commands)
        >>> completer.candidates("", "d"), completer.candidates("db show ", "f")
        (['db/show '], ['frontends '])
        """
        words = line.split()
        while words and (words[0] in PREFIXES or words[0].startswith("[")):
            words.pop(0)
        if not words:
            return self._with_blank(self._commands, text)
        return sorted(self._after(words, text))

    def _after(self, words: list[str], text: str) -> list[str]:
        command = self._commands.get(words[0])
        found: list[str] = []
        if len(words) == 1:
            # The second half of the old spelling, `db show` for `db/show`.
            start = f"{words[0]}/"
            halves = [name[len(start) :] for name in self._commands if name.startswith(start)]
            found += self._with_blank(halves, text)
        elif command is None or f"{words[0]}/{words[1]}" in self._commands:
            command = self._commands.get(f"{words[0]}/{words[1]}")
        if command is not None:
            pool = command["flags"] if text.startswith("-") else command["words"]
            found += self._with_blank(pool, text)
        if command is not None and not text.startswith("-"):
            found += files(text)
        return found

    @staticmethod
    def _with_blank(pool: Sequence[str] | Mapping[str, Any], text: str) -> list[str]:
        return sorted(f"{name} " for name in pool if name.startswith(text))


def files(text: str) -> list[str]:
    """The files and directories that begin with a text; a directory ends in a slash."""
    paths = glob.glob(f"{glob.escape(text)}*")
    return [f"{path}/" if Path(path).is_dir() else f"{path} " for path in paths]

# SPDX-License-Identifier: Apache-2.0
"""Regular expressions as Go reads them: RE2 itself, with Go's way of finding and replacing.

Source: https://github.com/google/re2/wiki/Syntax and the documentation of Go's regexp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import re2

_TEMPLATE: Final = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))")


class RegexpError(ValueError):
    """A pattern that RE2 refuses."""


class Regexp:
    """A compiled pattern. Texts are matched as UTF-8; bytes that are none (`surrogateescape`) stay
    what they are.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def matches(self, text: str) -> bool:
        """Whether the pattern matches anywhere."""
        return self._compiled.search(_bytes(text)) is not None

    def find_all(self, text: str) -> list[str]:
        """The matches from left to right; no empty one directly after another match."""
        return [_text(match[0]) for match in self._find_all(_bytes(text))]

    def lines_of_first(self, text: str) -> str:
        """Return the whole lines that the first match is in; empty without a match."""
        data = _bytes(text)
        match = self._compiled.search(data)
        if match is None:
            return ""
        start = data.rfind(b"\n", 0, match.start()) + 1
        end = data.find(b"\n", match.end())
        return _text(data[start : end if end >= 0 else len(data)])

    def replace_all(self, text: str, template: str) -> str:
        """Replace each match; `$1`, `$name` and `${name}` are its groups, `$$` is a dollar."""
        data, parts, end = _bytes(text), list[str](), 0
        for match in self._find_all(data):
            parts += [_text(data[end : match.start()]), self._expand(template, match)]
            end = match.end()
        return "".join([*parts, _text(data[end:])])

    def _find_all(self, data: bytes) -> Iterator[re.Match[bytes]]:
        position, previous_end = 0, -1
        while position <= len(data):
            match = self._compiled.search(data, position)
            if match is None:
                return
            if match.end() > position or match.start() != previous_end:
                yield match
            previous_end = match.end()
            position = max(match.end(), _after_character(data, position))

    def _expand(self, template: str, match: re.Match[bytes]) -> str:
        def group(reference: re.Match[str]) -> str:
            if reference[1]:
                return "$"
            name = reference[2] or reference[3]
            number = int(name) if name.isdecimal() else self._compiled.groupindex.get(name, -1)
            return _text(match[number] or b"") if 0 <= number <= self._compiled.groups else ""

        return _TEMPLATE.sub(group, template)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _after_character(data: bytes, position: int) -> int:
    position += 1
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position


@lru_cache(maxsize=512)
def compile_re2(pattern: str) -> Regexp:
    """Compile a pattern in RE2 syntax.

    >>> compile_re2("(?m)^b$").matches("a\\nb\\n"), compile_re2("b$").matches("b\\n")
    (True, False)

    Raises: RegexpError with the offending piece.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        return Regexp(re2.compile(pattern, options))
    except re2.error as error:
        raise RegexpError(f"error parsing regexp: {error.args[0].decode()}") from None


def quote_meta(text: str) -> str:
    """The text as a pattern that matches it literally."""
    return str(re2.escape(text))

# SPDX-License-Identifier: Apache-2.0
"""RE2 regular expressions, as Go reads them, on top of `re`.

A pattern is parsed by RE2's grammar and written anew for `re`, atom by atom; what RE2 does not have
(look-around, back-references, possessive repeats) is refused, so that a script means the same here
and there. The differences that matter: `$` is the very end of the text, `\\z` exists, classes such
as `\\d` are ASCII, `{,3}` is literal, flags may change in mid-pattern, and RE2 has `[[:alpha:]]`,
`\\Q…\\E` and `\\pL`.
Source: https://github.com/google/re2/wiki/Syntax and the documentation of Go's regexp/syntax.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

Ranges = list[tuple[int, int]]

_MAX_REPEAT = 1000
_POSIX: dict[str, Ranges] = {
    "alnum": [(48, 57), (65, 90), (97, 122)],
    "alpha": [(65, 90), (97, 122)],
    "ascii": [(0, 127)],
    "blank": [(9, 9), (32, 32)],
    "cntrl": [(0, 31), (127, 127)],
    "digit": [(48, 57)],
    "graph": [(33, 126)],
    "lower": [(97, 122)],
    "print": [(32, 126)],
    "punct": [(33, 47), (58, 64), (91, 96), (123, 126)],
    "space": [(9, 13), (32, 32)],
    "upper": [(65, 90)],
    "word": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "xdigit": [(48, 57), (65, 70), (97, 102)],
}
_PERL: dict[str, Ranges] = {
    "d": _POSIX["digit"],
    "w": _POSIX["word"],
    "s": [(9, 10), (12, 13), (32, 32)],
}
_CONTROL = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_ANCHORS = {
    "A": r"(?:\A)",
    "z": r"(?:\Z)",
    "b": r"(?a:\b)",
    "B": r"(?:(?a:\B)|\A\Z)",  # `re` finds no \B in an empty text, RE2 does
}
_COUNTED = re.compile(r"\{(\d+)(?:(,)(\d*))?\}", re.ASCII)
_FLAGS = re.compile(r"\?([imsU]*)(?:-([imsU]+))?([:)])", re.ASCII)
_NAMED = re.compile(r"\?P?<([A-Za-z0-9_]+)>", re.ASCII)
_TEMPLATE = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))")


class RegexpError(ValueError):
    """A pattern that RE2 refuses, or one that needs a Unicode script table that `re` lacks."""


@dataclass(frozen=True, slots=True)
class Regexp:
    """A compiled pattern; `names` gives the numbers of the groups of each name."""

    pattern: str
    compiled: re.Pattern[str]
    names: dict[str, list[int]]

    def matches(self, text: str) -> bool:
        """Whether the pattern matches anywhere."""
        return self.compiled.search(text) is not None

    def find_all(self, text: str) -> Iterator[re.Match[str]]:
        """The matches from left to right; no empty one directly after another match."""
        position, previous_end = 0, -1
        while position <= len(text):
            match = self.compiled.search(text, position)
            if match is None:
                return
            if match.end() > position or match.start() != previous_end:
                yield match
            previous_end = match.end()
            position = max(match.end(), position + 1)

    def replace_all(self, text: str, template: str) -> str:
        """Replace each match; `$1`, `$name` and `${name}` are its groups, `$$` is a dollar."""
        parts, end = list[str](), 0
        for match in self.find_all(text):
            parts += [text[end : match.start()], self._expand(template, match)]
            end = match.end()
        return "".join([*parts, text[end:]])

    def _expand(self, template: str, match: re.Match[str]) -> str:
        def group(reference: re.Match[str]) -> str:
            if reference[1]:
                return "$"
            name = reference[2] or reference[3]
            numbers = [int(name)] if name.isdecimal() else self.names.get(name, [])
            texts = (match[number] for number in numbers if number <= self.compiled.groups)
            return next((text for text in texts if text is not None), "")

        return _TEMPLATE.sub(group, template)


@lru_cache(maxsize=512)
def compile_re2(pattern: str) -> Regexp:
    """Compile a pattern in RE2 syntax.

    >>> compile_re2("(?m)^b$").matches("a\\nb\\n"), compile_re2("b$").matches("b\\n")
    (True, False)

    Raises: RegexpError with the offending piece.
    """
    translator = _Translator(pattern)
    translated = translator.translate()
    return Regexp(pattern, re.compile(translated), translator.names)


def quote_meta(text: str) -> str:
    """The text as a pattern that matches it literally."""
    return re.sub(r"[\\.+*?()|\[\]{}^$]", r"\\\g<0>", text)


class _Translator:
    """One pass over a pattern. `flags` are those in force at `at`, restored when a group closes."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.flags: frozenset[str] = frozenset()
        self.names: dict[str, list[int]] = {}
        self.groups = 0

    def translate(self) -> str:
        text = self._alternation()
        if self.at < len(self.pattern):
            raise self._error("unexpected )", self.pattern)
        return text

    def _error(self, what: str, piece: str) -> RegexpError:
        return RegexpError(f"error parsing regexp: {what}: `{piece}`")

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _take(self, count: int = 1) -> str:
        text = self.pattern[self.at : self.at + count]
        self.at += count
        return text

    def _alternation(self) -> str:
        parts = list[str]()
        quantifiable = False
        while (char := self._peek()) and char != ")":
            if char == "|":
                parts.append(self._take())
                quantifiable = False
            elif char in "*+?" or (char == "{" and _COUNTED.match(self.pattern, self.at)):
                start = self.at
                quantifier = self._quantifier()
                if not quantifiable:
                    piece = self.pattern[start : self.at]
                    raise self._error("missing argument to repetition operator", piece)
                parts.append(quantifier)
            else:
                atoms = self._atoms()
                parts += atoms
                quantifiable = bool(atoms) or quantifiable
        return "".join(parts)

    def _quantifier(self) -> str:
        start = self.at
        counted = _COUNTED.match(self.pattern, self.at)
        operator = self._take(len(counted[0]) if counted else 1)
        if counted:
            low, high = int(counted[1]), int(counted[3] or counted[1])
            if max(low, high) > _MAX_REPEAT or high < low:
                raise self._error("invalid repeat count", operator)
        lazy = self._peek() == "?"
        if lazy:
            self._take()
        if self._peek() in set("*+?") or _COUNTED.match(self.pattern, self.at):
            raise self._error("invalid nested repetition operator", self.pattern[start:])
        return operator + ("?" if lazy != ("U" in self.flags) else "")

    def _atoms(self) -> list[str]:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return [self._fold(self._class())]
        if char == "\\":
            return self._escape()
        if char == ".":
            return [r"(?s:.)" if "s" in self.flags else r"[^\n]"]
        if char == "^":
            return ["(?m:^)" if "m" in self.flags else r"(?:\A)"]
        if char == "$":
            return ["(?m:$)" if "m" in self.flags else r"(?:\Z)"]
        return [self._fold(re.escape(char))]

    def _fold(self, atom: str) -> str:
        return f"(?i:{atom})" if "i" in self.flags else atom

    def _group(self) -> list[str]:
        outer = self.flags
        opening = "("
        if self._peek() == "?":
            opening = self._group_opening()
            if not opening:
                return []
        else:
            self.groups += 1
        body = self._alternation()
        if self._take() != ")":
            raise self._error("missing closing )", self.pattern)
        self.flags = outer
        return [f"{opening}{body})"]

    def _group_opening(self) -> str:
        """What opens this `(?…` group; empty for bare flags, which hold to the group's end."""
        named = _NAMED.match(self.pattern, self.at)
        if named:
            self.at = named.end()
            self.groups += 1
            self.names.setdefault(named[1], []).append(self.groups)
            return "("
        flags = _FLAGS.match(self.pattern, self.at)
        if flags is None or flags[0] == "?)":
            piece = f"({self.pattern[self.at : self.at + 3]}"
            raise self._error("invalid or unsupported Perl syntax", piece)
        self.at = flags.end()
        inside = (self.flags | set(flags[1])) - set(flags[2] or "")
        self.flags = inside
        return "(?:" if flags[3] == ":" else ""

    def _escape(self) -> list[str]:
        char = self._peek()
        if char in _ANCHORS:
            self._take()
            return [_ANCHORS[char]]
        if char == "Q":
            self._take()
            end = self.pattern.find("\\E", self.at)
            literal = self._take((end if end >= 0 else len(self.pattern)) - self.at)
            self._take(2)
            return [self._fold(re.escape(each)) for each in literal]
        ranges = self._escaped_class()
        if ranges is not None:
            return [self._fold(_class_text(ranges))]
        return [self._fold(re.escape(chr(self._escaped_char())))]

    def _escaped_class(self) -> Ranges | None:
        r"""`\d`, `\W`, `\pL`, `\P{Lu}` after the backslash, or None."""
        char = self._peek()
        if char and char in "dwsDWS":
            self._take()
            ranges = _PERL[char.lower()]
            return _complement(ranges) if char.isupper() else ranges
        if char and char in "pP":
            return self._unicode_class(self._take() == "P")
        return None

    def _unicode_class(self, negated: bool) -> Ranges:
        name = self._take()
        if name == "{":
            end = self.pattern.find("}", self.at)
            name = self._take(max(end, self.at) - self.at)
            self._take()
        negated ^= name.startswith("^")
        ranges = _category(name.removeprefix("^"))
        if not ranges:
            raise self._error("invalid character class range", f"\\p{{{name}}}")
        return _complement(ranges) if negated else ranges

    def _escaped_char(self) -> int:
        """The code point of an escape, after the backslash, in and outside of classes."""
        char = self._take()
        if not char:
            raise self._error("trailing backslash at end of expression", "")
        if char in _CONTROL:
            return _CONTROL[char]
        if char == "x":
            return self._hex_char()
        octal = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{1,2}").match(self.pattern, self.at - 1)
        if octal:
            self.at = octal.end()
            return int(octal[0], 8)
        if char.isascii() and not char.isalnum():
            return ord(char)
        raise self._error("invalid escape sequence", "\\" + char)

    def _hex_char(self) -> int:
        match = re.compile(r"\{([0-9a-fA-F]+)\}|([0-9a-fA-F]{2})").match(self.pattern, self.at)
        value = int(match[1] or match[2], 16) if match else sys.maxunicode + 1
        if match is None or value > sys.maxunicode:
            raise self._error("invalid escape sequence", "\\x")
        self.at = match.end()
        return value

    def _class(self) -> str:
        start = self.at - 1
        negated = self._peek() == "^"
        if negated:
            self._take()
        ranges, first = Ranges(), True
        while first or self._peek() != "]":
            if not self._peek():
                raise self._error("missing closing ]", self.pattern[start:])
            ranges += self._class_item()
            first = False
        self._take()
        return _class_text(ranges, negated)

    def _class_item(self) -> Ranges:
        posix = re.compile(r"\[:(\^?)(\w+):\]").match(self.pattern, self.at)
        if posix:
            self.at = posix.end()
            if posix[2] not in _POSIX:
                raise self._error("invalid character class range", posix[0])
            named = _POSIX[posix[2]]
            return _complement(named) if posix[1] else named
        start = self.at
        if self._peek() == "\\":
            self._take()
            ranges = self._escaped_class()
            if ranges is not None:
                return ranges
            self.at -= 1
        low = high = self._class_char()
        if self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
            self._take()
            high = self._class_char()
        if high < low:
            raise self._error("invalid character class range", self.pattern[start : self.at])
        return [(low, high)]

    def _class_char(self) -> int:
        char = self._take()
        return self._escaped_char() if char == "\\" else ord(char)


def _class_text(ranges: Iterable[tuple[int, int]], negated: bool = False) -> str:
    # Everything numeric: no character of a class can then mean anything else to `re`.
    body = "".join(
        f"\\U{low:08x}" if low == high else f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges
    )
    return f"[{'^' if negated else ''}{body}]"


def _complement(ranges: Ranges) -> Ranges:
    result, start = Ranges(), 0
    for low, high in sorted(ranges):
        if low > start:
            result.append((start, low - 1))
        start = max(start, high + 1)
    if start <= sys.maxunicode:
        result.append((start, sys.maxunicode))
    return result


@lru_cache(maxsize=32)
def _category(name: str) -> Ranges:
    """The code points of a general category such as `L` or `Lu`; empty for anything else."""
    if not re.fullmatch(r"[CLMNPSZ][a-z]?", name):
        return []
    ranges = Ranges()
    for point in range(sys.maxunicode + 1):
        if unicodedata.category(chr(point)).startswith(name):
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1] = (ranges[-1][0], point)
            else:
                ranges.append((point, point))
    return ranges

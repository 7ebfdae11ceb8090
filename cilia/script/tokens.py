# SPDX-License-Identifier: Apache-2.0
"""One line of a script: prefix, guards, command name, words, `&`.

    [privileged] !  cmd  plain  'quoted text'  glued'to one'$WORD  &   # comment

Words are kept as fragments, since only unquoted text is expanded, and only when the line runs. The
grammar is that of the Go project's `script` package with the two retry prefixes of its users.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from cilia.script.errors import ParseError


class Want(Enum):
    """The outcome that a command's prefix demands."""

    SUCCESS = ""
    FAILURE = "!"
    EITHER = "?"
    RETRY_UNTIL_SUCCESS = "*"
    RETRY_UNTIL_FAILURE = "!*"

    @property
    def retries(self) -> bool:
        return self in (Want.RETRY_UNTIL_SUCCESS, Want.RETRY_UNTIL_FAILURE)

    @property
    def fails(self) -> bool:
        """Whether it is failure that the prefix waits for."""
        return self in (Want.FAILURE, Want.RETRY_UNTIL_FAILURE)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a word; quoted text is taken as it stands."""

    text: str
    quoted: bool


Word = tuple[Fragment, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """`[tag]` or `[!tag]`; a tag is `name` or `name:suffix`."""

    tag: str
    wanted: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A parsed command line."""

    text: str
    name: str
    words: tuple[Word, ...]
    want: Want
    guards: tuple[Guard, ...]
    background: bool


_PIECE = re.compile(
    r"(?P<space>[ \t\r]+)|(?P<comment>#)|'(?P<quoted>(?:[^']|'')*)'|(?P<plain>[^ \t\r#']+)"
)
_PREFIXES = {want.value: want for want in Want if want.value}


def raw_text(word: Word) -> str:
    """A word before expansion."""
    return "".join(fragment.text for fragment in word)


def plain_text(word: Word) -> str | None:
    """The text of a word that is one unquoted fragment, else None."""
    return word[0].text if len(word) == 1 and not word[0].quoted else None


def parse_line(text: str) -> Line | None:
    """Parse one line; None for a blank one or a comment.

    >>> line = parse_line("! grep 'it''s' $FILE  # comment")
    >>> line.want, line.name, [raw_text(word) for word in line.words]
    (<Want.FAILURE: '!'>, 'grep', ["it's", '$FILE'])

    Raises: ParseError for an open quote, two prefixes, `[]`, or a prefix without a command.
    """
    want, guards, name, words = Want.SUCCESS, list[Guard](), "", list[Word]()
    for word in _split(text):
        plain = plain_text(word) if not name else None
        if plain is None:
            words.append(word)
        elif plain in _PREFIXES:
            if want is not Want.SUCCESS:
                raise ParseError("more than one of the prefixes !, ?, * and !*")
            want = _PREFIXES[plain]
        elif plain.startswith("[") and plain.endswith("]"):
            guards.append(_guard(plain))
        else:
            name = plain
    if not name:
        if want is not Want.SUCCESS or guards or words:
            raise ParseError("missing command")
        return None
    background = bool(words) and plain_text(words[-1]) == "&"
    kept = words[:-1] if background else words
    return Line(text, name, tuple(kept), want, tuple(guards), background)


def _guard(text: str) -> Guard:
    tag = text[1:-1].strip()
    wanted = not tag.startswith("!")
    tag = tag.removeprefix("!").strip()
    if not tag:
        raise ParseError("empty condition")
    return Guard(tag, wanted)


def _split(text: str) -> list[Word]:
    words, current, position = list[Word](), list[Fragment](), 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            raise ParseError("unterminated quoted argument")
        position = piece.end()
        if piece["quoted"] is not None:
            current.append(Fragment(piece["quoted"].replace("''", "'"), True))
        elif piece["plain"] is not None:
            current.append(Fragment(piece["plain"], False))
        elif current:
            words.append(tuple(current))
            current = []
        if piece["comment"]:
            break
    if current:
        words.append(tuple(current))
    return words


def quote(arguments: list[str]) -> str:
    """The words of a line that parse to these arguments, for logs."""
    special = re.compile(r"[ \t\r#']")
    return " ".join(
        "'" + text.replace("'", "''") + "'" if not text or special.search(text) else text
        for text in arguments
    )

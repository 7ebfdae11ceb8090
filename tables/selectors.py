# SPDX-License-Identifier: Apache-2.0
"""Label selectors in text form, as the API server's ``labelSelector`` parameter takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from statedb.shown.text import shortened

# All repeats are possessive: none is tried a second time.
_REQUIREMENT: Final = re.compile(
    r"(?P<absent>!)?\s*+(?P<key>[-./\w]++)\s*+"
    r"(?:(?P<op>==|=|!=)\s*+(?P<value>[-.\w]*+)"
    r"|(?<=\s)(?P<set>in|notin)\s*+\((?P<values>[-.\w\s,]*+)\))?"
)
# Longer texts are refused; a requirement has some 30 characters.
MOST: Final = 10_000


class Requirement(msgspec.Struct, frozen=True):
    """The label has (negated: has not) one of ``values``; None: it is there at all."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        if self.values is None:
            return (self.key in labels) is not self.negated
        # A negated requirement is also met by a label that is not there.
        return (labels.get(self.key) in self.values) is not self.negated


class Selector(msgspec.Struct, frozen=True):
    """All requirements hold; an empty selector matches everything.

    >>> parse_selector("zone in (a, b), !gpu").matches({"zone": "a"})
    True
    >>> parse_selector("zone!=a").matches({"zone": "a"})
    False
    """

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


def parse_selector(text: str) -> Selector:
    """Raises ValueError naming the requirement that is none, or when the text is too long."""
    if len(text) > MOST:
        raise ValueError(f"{len(text)} characters are more than a selector may have ({MOST})")
    if not text.strip():
        return Selector()
    return Selector(tuple(_requirement(part.strip()) for part in _parts(text)))


def _parts(text: str) -> list[str]:
    """Split at the commas that are outside of parentheses, in one pass.

    >>> _parts("a in (b,c), d")
    ['a in (b,c)', ' d']
    """
    parts, start, inside = [], 0, False
    for at, character in enumerate(text):
        if character == "," and not inside:
            parts.append(text[start:at])
            start = at + 1
        elif character in "()":
            inside = character == "("
    return [*parts, text[start:]]


def _requirement(text: str) -> Requirement:
    match = _REQUIREMENT.fullmatch(text)
    if match is None or (match["absent"] and (match["op"] or match["set"])):
        raise ValueError(f"{shortened(text)!r} is not a label requirement")
    if match["op"]:
        return Requirement(match["key"], frozenset((match["value"],)), match["op"] == "!=")
    if match["set"]:
        values = frozenset(value.strip() for value in match["values"].split(","))
        return Requirement(match["key"], values, match["set"] == "notin")
    return Requirement(match["key"], None, bool(match["absent"]))

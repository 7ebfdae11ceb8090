# SPDX-License-Identifier: Apache-2.0
"""The value of one YAML document, built straight from libyaml's events.

Scalars follow the rules of JSON (YAML 1.2 core): a time stays text, ``12:30`` is no number, a key
given twice is an error. That is also twice as fast as PyYAML's constructor. Compiled.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from yaml.cyaml import CParser  # type: ignore[attr-defined]
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

__all__ = ["MAX_DEPTH", "Malformed", "parse_yaml"]

#: Collections in each other; also of JSON.
MAX_DEPTH: Final = 64

# Possessive where one could backtrack: each is linear in the text.
_INT: Final = re.compile(r"[-+]?[0-9]++")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]++|[0-9]++(\.[0-9]*+)?)([eE][-+]?[0-9]++)?")
# Go's YAML 1.1 words, which people's manifests rely on.
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_COLLECTION_TAGS: Final = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
# Values that aliases may stand for in one document: each use counts as if it were written out.
_MAX_ALIASED: Final = 10_000
# Longer numbers are no number that any field takes; Python refuses to convert some of them.
_MAX_DIGITS: Final = 100


class Malformed(Exception):
    """Well-formed YAML that is no value: a repeated key, an unknown tag, too many aliases."""


def parse_yaml(data: bytes) -> Any:
    """The value of one YAML document.

    Raises yaml.YAMLError or an exception with a mark for what is no YAML, or no value.
    """
    parser = CParser(data)
    try:
        return _Builder(parser).document()
    finally:
        parser.dispose()


class _Anchored(NamedTuple):
    """A value that has a name, with the number of values in it and how deep it is."""

    value: Any
    size: int
    depth: int


class _Builder:
    """Turns the events of one document into a value.

    The value of an alias is shared, so it costs nothing here; whoever walks through the result pays
    for each use. So uses are counted, and their number and depth are bounded.
    """

    def __init__(self, parser: Any) -> None:
        self._next = parser.get_event
        self._anchors: dict[str, _Anchored] = {}
        self._depth = self._deepest = 0
        # Values so far, with those that aliases stand for, and the latter alone.
        self._size = self._aliased = 0

    def document(self) -> Any:
        event = self._next()
        while not isinstance(event, DocumentStartEvent):
            if isinstance(event, StreamEndEvent):
                return None
            event = self._next()
        value = self._value(self._next())
        self._next()
        event = self._next()
        if not isinstance(event, StreamEndEvent):
            raise Malformed("a second document begins without a '---' line", event.start_mark)
        return value

    def _value(self, event: Any) -> Any:
        kind = type(event)
        if kind is AliasEvent:
            return self._alias(event)
        if event.anchor is not None:
            return self._anchor(event)
        return _scalar(event) if kind is ScalarEvent else self._collection(event)

    def _anchor(self, event: Any) -> Any:
        before, deepest = self._size, self._deepest
        self._deepest = self._depth
        value = _scalar(event) if type(event) is ScalarEvent else self._collection(event)
        depth = self._deepest - self._depth
        self._anchors[event.anchor] = _Anchored(value, self._size - before + 1, depth)
        self._deepest = max(deepest, self._deepest)
        return value

    def _alias(self, event: Any) -> Any:
        anchored = self._anchors.get(event.anchor)
        if anchored is None:
            raise Malformed(f"no anchor {event.anchor!r} before it is used", event.start_mark)
        self._size += anchored.size - 1
        self._aliased += anchored.size
        if self._aliased > _MAX_ALIASED:
            message = f"aliases stand for more than {_MAX_ALIASED} values"
            raise Malformed(message, event.start_mark)
        self._deepen(self._depth + anchored.depth, event)
        return anchored.value

    def _deepen(self, depth: int, event: Any) -> None:
        if depth > self._deepest:
            self._deepest = depth
            if depth > MAX_DEPTH:
                raise Malformed(f"nested deeper than {MAX_DEPTH}", event.start_mark)

    def _collection(self, event: Any) -> Any:
        self._depth += 1
        self._deepen(self._depth, event)
        if event.tag not in _COLLECTION_TAGS:
            raise Malformed(f"tag {event.tag} has no meaning here", event.start_mark)
        kind = type(event)
        if kind is MappingStartEvent:
            value: Any = self._mapping()
        elif kind is SequenceStartEvent:
            value = self._sequence()
        else:
            raise Malformed(f"unexpected {kind.__name__}", event.start_mark)
        self._size += len(value)
        self._depth -= 1
        return value

    def _sequence(self) -> list[Any]:
        values = []
        event = self._next()
        while type(event) is not SequenceEndEvent:
            values.append(self._value(event))
            event = self._next()
        return values

    def _mapping(self) -> dict[str, Any]:
        """Scalars, most of the values, are taken without a call that only tells them apart."""
        mapping: dict[str, Any] = {}
        merged: list[Any] = []
        event = self._next()
        while type(event) is not MappingEndEvent:
            if type(event) is not ScalarEvent:
                raise Malformed("a key is not a text", event.start_mark)
            key = event.value
            following = self._next()
            if type(following) is ScalarEvent and following.anchor is None:
                value = _scalar(following)
            else:
                value = self._value(following)
            if key in mapping:
                raise Malformed(f"key {key!r} is given twice", event.start_mark)
            if key == "<<" and event.implicit[0]:
                merged.extend(value if isinstance(value, list) else [value])
            else:
                mapping[key] = value
            event = self._next()
        for base in merged:
            for key, value in base.items() if isinstance(base, dict) else ():
                mapping.setdefault(key, value)
        return mapping


def _scalar(event: Any) -> Any:
    text: str = event.value
    if event.tag is not None:
        return _tagged(event)
    # implicit[0]: written plain, so the text decides its type.
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "+-.0123456789":
        return _number(text, event)
    return text


def _number(text: str, event: Any) -> Any:
    """The number that a text is by the rules of JSON, else the text."""
    is_int = _INT.fullmatch(text)
    if not is_int and not _FLOAT.fullmatch(text):
        return text
    if len(text) > _MAX_DIGITS:
        raise Malformed(f"a number of {len(text)} digits", event.start_mark)
    return int(text) if is_int else float(text)


def _tagged(event: Any) -> Any:
    text: str = event.value
    if event.tag in ("!", "tag:yaml.org,2002:str"):
        return text
    if event.tag != "tag:yaml.org,2002:int":
        raise Malformed(f"tag {event.tag} has no meaning here", event.start_mark)
    if not _INT.fullmatch(text):
        raise Malformed(f"{text!r} is not an integer", event.start_mark)
    return _number(text, event)

# SPDX-License-Identifier: Apache-2.0
"""The documents of a YAML or JSON file, each decoded on its own.

A file is cut at its ``---`` lines first, as kubectl does, so that a broken document takes none of
its neighbours with it. Values are built straight from libyaml's events with the scalar rules of
JSON (YAML 1.2 core): a time stays text, ``12:30`` is no number, a key given twice is an error. That
is also twice as fast as PyYAML's constructor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import orjson
import yaml
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

_SEPARATOR: Final = re.compile(rb"^---(?=[ \t\r\n]|$)", re.MULTILINE)
_HAS_CONTENT: Final = re.compile(rb"^[^\S\n]*[^\s#%]", re.MULTILINE)
_INT: Final = re.compile(r"[-+]?[0-9]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
# Go's YAML 1.1 words, which people's manifests rely on.
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_COLLECTION_TAGS: Final = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MAX_DEPTH: Final = 64
_KIND: Final = re.compile(rb"^kind:[ \t]*[\"']?([A-Za-z]+)", re.MULTILINE)
_NAME: Final = re.compile(
    rb"^metadata:(?:.*\n)(?:[ \t]+.*\n)*?[ \t]+name:[ \t]*[\"']?([-.\w]+)", re.MULTILINE
)
_NAMESPACE: Final = re.compile(
    rb"^metadata:(?:.*\n)(?:[ \t]+.*\n)*?[ \t]+namespace:[ \t]*[\"']?([-.\w]+)", re.MULTILINE
)


class Document(msgspec.Struct, frozen=True):
    """One document: its plain form, or why it has none. ``number`` counts from 1."""

    number: int
    form: Any = None
    error: str = ""
    # What a glance at the text tells about a document that could not be decoded.
    kind: str = ""
    namespace: str = ""
    name: str = ""


class _Malformed(Exception):
    """Well-formed YAML that is no value: a repeated key, an unknown tag, an unknown anchor."""


def read_yaml(data: bytes) -> list[Document]:
    """The documents that have content, in order."""
    found: list[Document] = []
    for part, first_line in _parts(data):
        number = len(found) + 1
        try:
            found.append(Document(number, parse_yaml(part)))
        except (yaml.YAMLError, _Malformed) as error:
            found.append(_broken(number, part, _explain(error, first_line)))
    return found


def read_json(data: bytes) -> list[Document]:
    """A JSON file is one document; an empty file is none."""
    if not data.strip():
        return []
    try:
        return [Document(1, orjson.loads(data))]
    except orjson.JSONDecodeError as error:
        return [Document(1, error=f"line {error.lineno}: {error.msg}")]


def _parts(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each part with content, and the line number (from 0) that it begins on."""
    start = line = 0
    for match in (*_SEPARATOR.finditer(data), None):
        part = data[start : match.start()] if match else data[start:]
        if _HAS_CONTENT.search(part):
            yield part, line
        if match:
            start = match.end()
            line += part.count(b"\n")


def _broken(number: int, part: bytes, error: str) -> Document:
    kind, namespace, name = (
        match[1].decode() if (match := pattern.search(part)) else ""
        for pattern in (_KIND, _NAMESPACE, _NAME)
    )
    return Document(number, error=error, kind=kind, namespace=namespace, name=name)


def _explain(error: Exception, first_line: int) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark, problem = error.problem_mark, error.problem
    elif isinstance(error, _Malformed):
        problem, mark = error.args
    else:
        return " ".join(str(error).split())
    return f"line {first_line + mark.line + 1}: {problem}" if mark else str(problem)


def parse_yaml(data: bytes) -> Any:
    """The value of one YAML document.

    Raises yaml.YAMLError or an exception with a mark for what is no YAML, or no value.
    """
    parser = CParser(data)
    try:
        return _Builder(parser).document()
    finally:
        parser.dispose()


class _Builder:
    """Turns the events of one document into a value."""

    def __init__(self, parser: Any) -> None:
        self._next = parser.get_event
        self._anchors: dict[str, Any] = {}
        self._depth = 0

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
            raise _Malformed("a second document begins without a '---' line", event.start_mark)
        return value

    def _value(self, event: Any) -> Any:
        kind = type(event)
        if kind is ScalarEvent:
            value = _scalar(event)
        elif kind is AliasEvent:
            if event.anchor not in self._anchors:
                raise _Malformed(f"no anchor {event.anchor!r} before it is used", event.start_mark)
            return self._anchors[event.anchor]
        else:
            value = self._collection(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _collection(self, event: Any) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Malformed(f"nested deeper than {_MAX_DEPTH}", event.start_mark)
        if event.tag not in _COLLECTION_TAGS:
            raise _Malformed(f"tag {event.tag} has no meaning here", event.start_mark)
        if type(event) is MappingStartEvent:
            value: Any = self._mapping()
        elif type(event) is SequenceStartEvent:
            value = self._sequence()
        else:
            raise _Malformed(f"unexpected {type(event).__name__}", event.start_mark)
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
        mapping: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        event = self._next()
        while type(event) is not MappingEndEvent:
            if type(event) is not ScalarEvent:
                raise _Malformed("a key is not a text", event.start_mark)
            key = event.value
            value = self._value(self._next())
            if key == "<<" and event.implicit[0]:
                merged.extend(value if isinstance(value, list) else [value])
            elif key in mapping:
                raise _Malformed(f"key {key!r} is given twice", event.start_mark)
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
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


_TAGS: Final = {"tag:yaml.org,2002:str": str, "tag:yaml.org,2002:int": int}


def _tagged(event: Any) -> Any:
    if event.tag == "!":
        return event.value
    make = _TAGS.get(event.tag)
    if make is None:
        raise _Malformed(f"tag {event.tag} has no meaning here", event.start_mark)
    return make(event.value)

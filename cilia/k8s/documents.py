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

from statedb.shown.text import shortened

# Possessive where one could backtrack: each is linear in the text.
_SEPARATOR: Final = re.compile(rb"^---(?=[ \t\r\n]|$)", re.MULTILINE)
_HAS_CONTENT: Final = re.compile(rb"^[^\S\n]*+[^\s#%]", re.MULTILINE)
_INT: Final = re.compile(r"[-+]?[0-9]++")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]++|[0-9]++(\.[0-9]*+)?)([eE][-+]?[0-9]++)?")
# Go's YAML 1.1 words, which people's manifests rely on.
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_COLLECTION_TAGS: Final = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MAX_DEPTH: Final = 64
# Values that aliases may stand for in one document: each use counts as if it were written out.
_MAX_ALIASED: Final = 10_000
# Longer numbers are no number that any field takes; Python refuses to convert some of them.
_MAX_DIGITS: Final = 100
# A glance at a broken document goes no further.
_GLANCE_BYTES: Final = 64 * 1024
_WORD: Final = frozenset(b"-._abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


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
    """Well-formed YAML that is no value: a repeated key, an unknown tag, too many aliases."""


def read_yaml(data: bytes) -> list[Document]:
    """The documents that have content, in order."""
    found: list[Document] = []
    for part, first_line in _parts(data):
        number = len(found) + 1
        try:
            found.append(Document(number, parse_yaml(part)))
        except Exception as error:  # noqa: BLE001 - of this document alone: the others are read
            found.append(_broken(number, part, _explain(error, first_line)))
    return found


def read_json(data: bytes) -> list[Document]:
    """A JSON file is one document; an empty file is none."""
    if not data.strip():
        return []
    try:
        form = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return [Document(1, error=f"line {error.lineno}: {error.msg}")]
    if _is_deep(form):
        return [Document(1, error=f"nested deeper than {_MAX_DEPTH}")]
    return [Document(1, form)]


def _is_deep(form: Any) -> bool:
    """True when collections are nested deeper than anything that is read. Not recursive."""
    level = [form]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


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
    kind, namespace, name = _glance(part)
    return Document(number, error=error, kind=kind, namespace=namespace, name=name)


def _glance(part: bytes) -> tuple[str, str, str]:
    """Kind, namespace and name as block style writes them; one look at each line."""
    found = {b"kind": "", b"namespace": "", b"name": ""}
    in_metadata, first_indent = False, 0
    for line in part[:_GLANCE_BYTES].split(b"\n"):
        text = line.lstrip(b" \t")
        key, colon, value = text.partition(b":")
        if not colon or text.startswith(b"#"):
            continue
        indent = len(line) - len(text)
        if not indent:
            in_metadata, first_indent = key == b"metadata", 0
            wanted = key == b"kind"
        else:
            first_indent = first_indent or indent
            wanted = in_metadata and indent == first_indent and key in (b"name", b"namespace")
        if wanted:
            found[key] = found[key] or _word(value)
    return found[b"kind"], found[b"namespace"], found[b"name"]


def _word(value: bytes) -> str:
    """The word that a value begins with, without quotes; empty for anything else."""
    word = (value[:300].split(maxsplit=1) or [b""])[0].strip(b"\"'")
    return word.decode() if _WORD.issuperset(word) else ""


def _explain(error: Exception, first_line: int) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark, problem = error.problem_mark, error.problem
    elif isinstance(error, _Malformed):
        problem, mark = error.args
    elif isinstance(error, yaml.YAMLError):
        return shortened(" ".join(str(error).split()))
    else:
        return shortened(f"cannot be decoded: {type(error).__name__}: {error}")
    problem = shortened(str(problem))
    return f"line {first_line + mark.line + 1}: {problem}" if mark else problem


def parse_yaml(data: bytes) -> Any:
    """The value of one YAML document.

    Raises yaml.YAMLError or an exception with a mark for what is no YAML, or no value.
    """
    parser = CParser(data)
    try:
        return _Builder(parser).document()
    finally:
        parser.dispose()


class _Anchored(msgspec.Struct, frozen=True):
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
            raise _Malformed("a second document begins without a '---' line", event.start_mark)
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
            raise _Malformed(f"no anchor {event.anchor!r} before it is used", event.start_mark)
        self._size += anchored.size - 1
        self._aliased += anchored.size
        if self._aliased > _MAX_ALIASED:
            message = f"aliases stand for more than {_MAX_ALIASED} values"
            raise _Malformed(message, event.start_mark)
        self._deepen(self._depth + anchored.depth, event)
        return anchored.value

    def _deepen(self, depth: int, event: Any) -> None:
        if depth > self._deepest:
            self._deepest = depth
            if depth > _MAX_DEPTH:
                raise _Malformed(f"nested deeper than {_MAX_DEPTH}", event.start_mark)

    def _collection(self, event: Any) -> Any:
        self._depth += 1
        self._deepen(self._depth, event)
        if event.tag not in _COLLECTION_TAGS:
            raise _Malformed(f"tag {event.tag} has no meaning here", event.start_mark)
        kind = type(event)
        if kind is MappingStartEvent:
            value: Any = self._mapping()
        elif kind is SequenceStartEvent:
            value = self._sequence()
        else:
            raise _Malformed(f"unexpected {kind.__name__}", event.start_mark)
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
                raise _Malformed("a key is not a text", event.start_mark)
            key = event.value
            following = self._next()
            if type(following) is ScalarEvent and following.anchor is None:
                value = _scalar(following)
            else:
                value = self._value(following)
            if key in mapping:
                raise _Malformed(f"key {key!r} is given twice", event.start_mark)
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
        raise _Malformed(f"a number of {len(text)} digits", event.start_mark)
    return int(text) if is_int else float(text)


def _tagged(event: Any) -> Any:
    text: str = event.value
    if event.tag in ("!", "tag:yaml.org,2002:str"):
        return text
    if event.tag != "tag:yaml.org,2002:int":
        raise _Malformed(f"tag {event.tag} has no meaning here", event.start_mark)
    if not _INT.fullmatch(text):
        raise _Malformed(f"{text!r} is not an integer", event.start_mark)
    return _number(text, event)

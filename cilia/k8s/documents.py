# SPDX-License-Identifier: Apache-2.0
"""The documents of a YAML or JSON file, each decoded on its own.

A file is cut at its ``---`` lines first, as kubectl does, so that a broken document takes none of
its neighbours with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import orjson
import yaml

from cilia.k8s.yaml_values import MAX_DEPTH, Malformed, parse_yaml
from statedb.shown.text import shortened

# Possessive where one could backtrack: each is linear in the text.
_SEPARATOR: Final = re.compile(rb"^---(?=[ \t\r\n]|$)", re.MULTILINE)
_HAS_CONTENT: Final = re.compile(rb"^[^\S\n]*+[^\s#%]", re.MULTILINE)
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
        return [Document(1, error=f"nested deeper than {MAX_DEPTH}")]
    return [Document(1, form)]


def _is_deep(form: Any) -> bool:
    """True when collections are nested deeper than anything that is read. Not recursive."""
    level = [form]
    for _ in range(MAX_DEPTH + 1):
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
    elif isinstance(error, Malformed):
        problem, mark = error.args
    elif isinstance(error, yaml.YAMLError):
        return shortened(" ".join(str(error).split()))
    else:
        return shortened(f"cannot be decoded: {type(error).__name__}: {error}")
    problem = shortened(str(problem))
    return f"line {first_line + mark.line + 1}: {problem}" if mark else problem

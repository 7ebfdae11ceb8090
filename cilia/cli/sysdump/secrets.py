# SPDX-License-Identifier: Apache-2.0
"""Strikes out what looks like a credential: in texts by patterns, in rows also by the names of
fields.

People put manifests with all that they hold into annotations (`kubectl apply` does), environment
variables, and credentials into addresses. An archive is for somebody who is not to have them.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

__all__ = ["redacted", "redacted_row"]

STRUCK: Final = "***"
_APPLIED: Final = "last-applied-configuration"
_NAMES: Final = (
    r"password|passwd|token|secret|api[-_]?key|private[-_]?key"
    r"|key-data|certificate-data|certificate-authority-data"
)
# Quotes may be escaped: the text of an object stands in a field of another.
_QUOTE: Final = r"\\*+[\"']?"
_PATTERNS: Final = (
    # All that follows on its line.
    (re.compile(rf"({_APPLIED}{_QUOTE}\s*+[:=]\s*+)\S.*"), rf"\1{STRUCK}"),
    (re.compile(r"(://)[^/@\s\"']++@"), rf"\1{STRUCK}@"),
    (re.compile(r"(?i)\b(bearer\s++|basic\s++(?=\S{8}))[\w.~+/=-]++"), rf"\1{STRUCK}"),
    (
        re.compile(rf"(?i)((?:{_NAMES}){_QUOTE}\s*+[:=]\s*+{_QUOTE})[^\s\"',}}&\\]++"),
        rf"\1{STRUCK}",
    ),
    # A token of a service account, wherever it stands.
    (re.compile(r"\beyJ[\w-]{8,}+\.[\w-]++\.[\w-]++"), STRUCK),
    (
        re.compile(r"-----BEGIN ([A-Z ]{0,20}PRIVATE KEY)-----.{0,20000}?-----END \1-----", re.S),
        STRUCK,
    ),
)
_SECRET_NAME: Final = re.compile(rf"(?i){_NAMES}|{_APPLIED}")


def redacted(text: str) -> str:
    """
    >>> redacted("https://me:word@api:6443 Authorization: Bearer abc.def")
    'https://***@api:6443 Authorization: Bearer ***'
    """
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def redacted_row(line: bytes) -> bytes:
    """A row as JSON; one without a credential stays as it is.

    >>> redacted_row(b'{"env": [{"name": "A", "value": "b"}], "Token": "abc", "n": 1}')
    b'{"env":[{"name":"A","value":"***"}],"Token":"***","n":1}'
    """
    row = msgspec.json.decode(line)
    struck = _struck(row)
    return line if struck == row else msgspec.json.encode(struck)


def _struck(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list):
        return [_struck(item) for item in value]
    if isinstance(value, dict):
        return {key: _field(key, item) for key, item in value.items()}
    return value


def _field(name: str, value: Any) -> Any:
    if name.lower() == "env" and isinstance(value, list):
        return [_variable(item) for item in value]
    if isinstance(value, str) and value and _SECRET_NAME.search(name):
        return STRUCK
    return _struck(value)


def _variable(item: Any) -> Any:
    """The name of an environment variable says what it is, its value is nobody's business."""
    if isinstance(item, dict):
        return {k: STRUCK if k.lower() == "value" else _struck(v) for k, v in item.items()}
    return f"{item.partition('=')[0]}={STRUCK}" if isinstance(item, str) else item

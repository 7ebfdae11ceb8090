# SPDX-License-Identifier: Apache-2.0
"""Go's way with text: `$NAME` expansion, string escapes, durations.

Scripts written for Go programs rely on these to the letter: os.Expand (an undefined variable is
empty, a lone `$` stays), strconv.Unquote for double-quoted strings, and time.ParseDuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

_VARIABLE = re.compile(
    r"\$(?:\{(?P<braced>[^}]*)\}|(?P<open>\{)|(?P<special>[*#$@!?\-0-9])|(?P<name>[A-Za-z_]\w*))",
    re.ASCII,
)
_ESCAPE = re.compile(
    r'\\(?:(?P<simple>[abfnrtv\\"])|x(?P<hex>[0-9a-fA-F]{2})|(?P<octal>[0-7]{3})'
    r'|u(?P<u4>[0-9a-fA-F]{4})|U(?P<u8>[0-9a-fA-F]{8})|(?P<bad>.?))|(?P<raw>["\n])',
    re.DOTALL,
)
_SIMPLE = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
}
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_QUANTITY = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


def expand(text: str, lookup: Callable[[str], str]) -> str:
    """Replace `$NAME` and `${NAME}`, where a braced name may be anything but `}`.

    >>> expand("${a/b} $x$", lambda name: f"<{name}>")
    '<a/b> <x>$'
    """

    def value(match: re.Match[str]) -> str:
        # `${}` and an unclosed `${` are eaten, as they are in Go.
        name = match["braced"] or match["special"] or match["name"]
        return lookup(name) if name else ""

    return _VARIABLE.sub(value, text)


def unquote(text: str) -> str:
    r"""The inside of a double-quoted Go string.

    >>> unquote(r"a\tb\x21\u00e9")
    'a\tb!é'

    Raises: ValueError for an escape that Go does not have, a bare `"`, or a newline.
    """

    def value(match: re.Match[str]) -> str:
        if match["simple"]:
            return _SIMPLE[match["simple"]]
        if match["hex"]:
            return _byte(int(match["hex"], 16))
        if match["octal"] and int(match["octal"], 8) < 256:
            return _byte(int(match["octal"], 8))
        if match["u4"] or match["u8"]:
            return _rune(int(match["u4"] or match["u8"], 16), text)
        raise ValueError(f"not the inside of a Go string: {text!r}")

    # Escapes such as \xc3\xa9 give single bytes; together they may be one character.
    joined = _ESCAPE.sub(value, text)
    return joined.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _byte(value: int) -> str:
    return bytes([value]).decode("utf-8", "surrogateescape")


def _rune(value: int, text: str) -> str:
    if value > 0x10FFFF or 0xD800 <= value < 0xE000:
        raise ValueError(f"not the inside of a Go string: {text!r}")
    return chr(value)


def parse_duration(text: str) -> float:
    """A Go duration in seconds.

    >>> parse_duration("1m1.5s"), parse_duration("-20ms"), parse_duration("0")
    (61.5, -0.02, 0.0)

    Raises: ValueError unless the text is numbers with units, or 0.
    """
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    if unsigned == "0":
        return 0.0
    total, position = Decimal(0), 0
    while position < len(unsigned):
        match = _QUANTITY.match(unsigned, position)
        if match is None:
            raise ValueError(f"invalid duration {text!r}")
        total += Decimal(match[1]) * _UNIT_NS[match[2]]
        position = match.end()
    if not unsigned:
        raise ValueError(f"invalid duration {text!r}")
    return float(-total if text.startswith("-") else total) / 1e9


def format_duration(seconds: float) -> str:
    """A duration as Go prints it.

    >>> format_duration(10800), format_duration(0.02), format_duration(61.5), format_duration(0)
    ('3h0m0s', '20ms', '1m1.5s', '0s')
    """
    nanoseconds = round(seconds * 1e9)
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for unit, limit in (("ns", 10**3), ("µs", 10**6), ("ms", 10**9)):
        if rest < limit:
            return f"{sign}{_trimmed(Decimal(rest) / (limit // 1000))}{unit}"
    hours, rest = divmod(rest, _UNIT_NS["h"])
    minutes, rest = divmod(rest, _UNIT_NS["m"])
    text = f"{_trimmed(Decimal(rest) / 10**9)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else sign + text


def _trimmed(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text

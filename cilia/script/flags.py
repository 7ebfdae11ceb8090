# SPDX-License-Identifier: Apache-2.0
"""Command-line flags as pflag reads them, and their part of a command's help.

Flags and arguments may be mixed; `--name=v`, `--name v`, `-o v`, `-o=v`, `-ov`, Booleans also
bundled (`-qt`); `--` ends the flags, a lone `-` is an argument. Source: github.com/spf13/pflag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from cilia.script.environment import format_duration, parse_duration
from cilia.script.errors import FlagError


class FlagLike(Protocol):
    """What the engine needs to know of a flag."""

    @property
    def name(self) -> str: ...
    @property
    def short(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def default(self) -> Any: ...
    @property
    def help(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of a command.

    `kind`: bool, str, int, float, duration (seconds), strings (comma list, may be repeated), or
    optional (a string that may be left out: bare, it is "true").
    """

    name: str
    short: str = ""
    kind: str = "bool"
    default: Any = None
    help: str = ""


class HelpRequested(Exception):
    """`-h` or `--help` was among the flags."""


_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def _bool(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError("invalid syntax")
    return text in _TRUE


def _int(text: str) -> int:
    return int(text, 0)


_CONVERT: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "bool": _bool,
        "str": str,
        "string": str,
        "int": _int,
        "float": float,
        "duration": parse_duration,
        "strings": lambda text: text.split(",") if text else [],
        "optional": str,
    }
)
_ZERO: Mapping[str, Any] = MappingProxyType(
    {"bool": False, "int": 0, "float": 0.0, "duration": 0.0}
)
_TYPE_NAMES = {"str": "string", "optional": "string"}
_NEEDS_NO_VALUE = frozenset({"bool", "optional"})


def default_of(flag: FlagLike) -> Any:
    """The flag's value when it is not given."""
    if flag.default is not None:
        return flag.default
    return [] if flag.kind == "strings" else _ZERO.get(flag.kind, "")


def parse_flags(
    declared: Sequence[FlagLike], arguments: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The value of each declared flag, and the arguments that are left.

    >>> declared = [Flag("out", "o", "str"), Flag("quiet", "q")]
    >>> parse_flags(declared, ["a", "-qofile", "--", "-b"])
    ({'out': 'file', 'quiet': True}, ['a', '-b'])

    Raises: FlagError for an unknown flag, a missing or a bad value; HelpRequested.
    """
    parser = _Parser(declared, list(arguments))
    parser.run()
    return parser.values, parser.rest


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command without flags is asked for its help: `-h` before any other flag."""
    for argument in arguments:
        if argument in ("-h", "--help"):
            return True
        if argument.startswith("-") and argument != "-":
            return False
    return False


class _Parser:
    def __init__(self, declared: Sequence[FlagLike], arguments: list[str]) -> None:
        self.long = {flag.name: flag for flag in declared}
        self.short = {flag.short: flag for flag in declared if flag.short}
        self.values = {flag.name: default_of(flag) for flag in declared}
        self.given: set[str] = set()
        self.waiting = arguments
        self.rest = list[str]()

    def run(self) -> None:
        while self.waiting:
            argument = self.waiting.pop(0)
            if argument == "--":
                self.rest += self.waiting
                return
            if argument.startswith("--"):
                self._long(argument)
            elif argument.startswith("-") and argument != "-":
                self._shorts(argument)
            else:
                self.rest.append(argument)

    def _long(self, argument: str) -> None:
        name, equals, value = argument[2:].partition("=")
        flag = self.long.get(name)
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {argument}")
        if flag is None:
            if name == "help":
                raise HelpRequested
            raise FlagError(f"unknown flag: --{name}")
        self._set(flag, value if equals else self._value(flag, argument), f"--{name}")

    def _shorts(self, argument: str) -> None:
        letters = argument[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = self.short.get(letter)
            if flag is None:
                if letter == "h":
                    raise HelpRequested
                raise FlagError(f"unknown shorthand flag: {letter!r} in {argument}")
            label = f"-{letter}, --{flag.name}"
            if letters.startswith("="):
                value, letters = letters[1:], ""
            elif flag.kind in _NEEDS_NO_VALUE:
                value = "true"
            elif letters:
                value, letters = letters, ""
            else:
                value = self._value(flag, f"{letter!r} in {argument}")
            self._set(flag, value, label)

    def _value(self, flag: FlagLike, label: str) -> str:
        if flag.kind in _NEEDS_NO_VALUE:
            return "true"
        if not self.waiting:
            raise FlagError(f"flag needs an argument: {label}")
        return self.waiting.pop(0)

    def _set(self, flag: FlagLike, text: str, label: str) -> None:
        try:
            value = _CONVERT[flag.kind](text)
        except ValueError as error:
            raise FlagError(f'invalid argument "{text}" for "{label}" flag: {error}') from error
        if flag.kind == "strings" and flag.name in self.given:
            value = [*self.values[flag.name], *value]
        self.given.add(flag.name)
        self.values[flag.name] = value


def synopsis(flags: Sequence[FlagLike]) -> str:
    """The flags as they stand in a usage line, with a blank after them if there are any."""
    ordered = sorted(flags, key=lambda flag: flag.name)
    shorts = "".join(flag.short for flag in ordered)
    parts = [f"[-{shorts}]"] if shorts else []
    for flag in ordered:
        value = "" if flag.kind == "bool" else f"={_TYPE_NAMES.get(flag.kind, flag.kind)}"
        parts.append(f"[--{flag.name}{value}]")
    return "".join(part + " " for part in parts)


def flag_help(flags: Sequence[FlagLike]) -> list[str]:
    """One aligned line a flag: names, type, what it does, the default unless it is the zero."""
    rows = []
    for flag in sorted(flags, key=lambda flag: flag.name):
        short = f"-{flag.short}, " if flag.short else "    "
        kind = "" if flag.kind == "bool" else f" {_TYPE_NAMES.get(flag.kind, flag.kind)}"
        rows.append((f"  {short}--{flag.name}{kind}", flag.help + _default_note(flag)))
    width = max((len(left) for left, _ in rows), default=0)
    return [f"{left:<{width}}   {right}".rstrip() for left, right in rows]


def _default_note(flag: FlagLike) -> str:
    value = default_of(flag)
    if not value:
        return ""
    if flag.kind == "duration":
        return f" (default {format_duration(value)})"
    return f' (default "{value}")' if isinstance(value, str) else f" (default {value})"

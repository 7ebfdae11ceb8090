# SPDX-License-Identifier: Apache-2.0
"""The commands `json` and `yaml`: JMESPath queries on documents.

The one module here that needs libraries (jmespath, PyYAML), so nothing in this package imports it:
who builds a set of commands adds `DOCUMENT_COMMANDS`. Documents are written as Go writes them,
since they end in files that are compared byte for byte: JSON compact, keys sorted, `<`, `>` and
`&` escaped, no newline at the end; YAML with sorted keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, ClassVar

import jmespath
import jmespath.exceptions
import yaml

from cilia.script.commands import Command, Flag, Output
from cilia.script.errors import CommandFailed, UsageError
from cilia.script.state import Flags, State

_STRING_TAG = "tag:yaml.org,2002:str"
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


_NOT_IN_GO = {"tag:yaml.org,2002:value"}
_RESOLVED_IN_GO = (
    ("bool", r"[yYnN]", "yYnN"),
    ("int", r"0o[0-7]+", "0"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
)


class _Loader(yaml.SafeLoader):
    """Timestamps stay texts, as they do on the way to JSON; y and n are Booleans."""

    bool_values: ClassVar = {**yaml.SafeLoader.bool_values, "y": True, "n": False}


class _Dumper(yaml.SafeDumper):
    """Double quotes where a text would read as something else, `|` for several lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _resolve_as_go(kind: Any, without: set[str]) -> None:
    """Let plain texts of a loader or dumper mean what they mean to Go's YAML."""
    kind.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in without]
        for first, resolvers in kind.yaml_implicit_resolvers.items()
    }
    for name, pattern, first_chars in _RESOLVED_IN_GO:
        tag, regexp = f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$")
        kind.add_implicit_resolver(tag, regexp, list(first_chars))


_resolve_as_go(_Loader, {*_NOT_IN_GO, _TIMESTAMP_TAG})
_resolve_as_go(_Dumper, _NOT_IN_GO)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text:
        return dumper.represent_scalar(_STRING_TAG, text, style="|")
    resolve: Callable[..., str] = dumper.resolve  # the types of PyYAML leave this one out
    plain = resolve(yaml.ScalarNode, text, (True, False)) == _STRING_TAG
    return dumper.represent_scalar(_STRING_TAG, text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def parse_yaml(text: str) -> Any:
    """A YAML document as what its JSON would be: every key a text."""
    return _with_text_keys(yaml.load(text, _Loader))


def dump_yaml(value: Any) -> str:
    text: str = yaml.dump(
        _with_go_numbers(value), Dumper=_Dumper, sort_keys=True, allow_unicode=True
    )
    # A lone scalar gets an end-of-document mark, which Go does not write.
    return text.removesuffix("...\n")


def dump_json(value: Any) -> str:
    """Compact JSON, as Go's encoding/json writes it.

    >>> dump_json({"b": 1.0, "a": ["<", None]})
    '{"a":["\\\\u003c",null],"b":1}'
    """
    text = json.dumps(
        _with_go_numbers(value), separators=(",", ":"), sort_keys=True, ensure_ascii=False
    )
    for char, escape in _HTML.items():
        text = text.replace(char, escape)
    return text


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_text_keys(item) for item in value]
    return value


def _key(key: Any) -> str:
    if isinstance(key, bool) or key is None:
        return json.dumps(key)
    return str(key)


def _with_go_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_go_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_go_numbers(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    return value


def _transform(state: State, flags: Flags, args: list[str], language: str) -> Output:
    output_language, expression = _choices(flags, args, language)
    text = state.read_text(flags["input"] or "stdout")
    try:
        document = json.loads(text) if language == "json" else parse_yaml(text)
        result = jmespath.search(expression, document)
    except (ValueError, yaml.YAMLError, jmespath.exceptions.JMESPathError) as error:
        return Output(error=CommandFailed(f"{type(error).__name__}: {error}"))
    if flags["fail"] == "true" and result is None:
        return Output(error=CommandFailed("no match"))
    if flags["quiet"]:
        return Output()
    rendered = dump_json(result) if output_language == "json" else dump_yaml(result)
    if flags["output"]:
        state.write_text(flags["output"], rendered)
        return Output()
    return Output(rendered)


def _choices(flags: Flags, args: list[str], language: str) -> tuple[str, str]:
    """The language to write, and the expression.

    `-f` alone means «fail if there is no match»; followed by a language, it names the output's.
    """
    fail = flags["fail"]
    if fail == "true" and len(args) == 2 and args[0] in ("json", "yaml"):
        fail, args = args[0], args[1:]
        flags["fail"] = ""
    if len(args) != 1:
        raise UsageError("usage: expected one expression")
    if fail not in ("", "true", "false", "json", "yaml"):
        raise UsageError(f"unknown format {fail!r}: json or yaml")
    return (fail if fail in ("json", "yaml") else language), args[0]


def _json(state: State, flags: Flags, args: list[str]) -> Output:
    return _transform(state, flags, args, "json")


def _yaml(state: State, flags: Flags, args: list[str]) -> Output:
    return _transform(state, flags, args, "yaml")


_FLAGS = (
    Flag("input", "i", "str", help="file to read instead of stdout"),
    Flag("output", "o", "str", help="file to write instead of stdout"),
    Flag("quiet", "q", help="no output"),
    Flag("fail", "f", "optional", help="alone: fail if nothing matches; json, yaml: output format"),
)
_DETAIL = ("The expression is JMESPath: https://jmespath.org/tutorial.html",)

DOCUMENT_COMMANDS = (
    Command("json", "query a JSON document", _json, "EXPRESSION", _DETAIL, _FLAGS),
    Command("yaml", "query a YAML document", _yaml, "EXPRESSION", _DETAIL, _FLAGS),
)

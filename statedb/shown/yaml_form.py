# SPDX-License-Identifier: Apache-2.0
"""Plain values as YAML in the form of Go's yaml.v3, which golden files hold, and back.

Indented by four, sequences below their key too, strings that look like another type in double
quotes. Apart from `plain`, because most programs that print tables never load a YAML library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import yaml

from statedb.errors import UnreadableObject
from statedb.shown.plain import from_plain, to_plain


class _Dumper(yaml.SafeDumper):
    """PyYAML's emitter with the indentation of Go's yaml.v3."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        self.indents.append(self.indent)
        if self.indent is None:
            self.indent = self.best_indent if flow else 0
        elif self.states and self.states[-1] == self.expect_block_sequence_item:
            self.indent += 2
        else:
            self.indent = self.best_indent * (self.indent // self.best_indent + 1)

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: Any = None) -> yaml.MappingNode:
        """A key of several lines is quoted: as a block it is not read back by every reader."""
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            if key.style == "|":
                key.style = '"'
        return node


_OTHER_BREAKS = frozenset("\r\x85\u2028\u2029")  # lost or changed where they are not escaped
_OLD_BOOLEANS = frozenset("yYnN")  # quoted by yaml.v3, and not known to PyYAML


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    tag = "tag:yaml.org,2002:str"
    # A block that begins with a blank needs an indentation number, which PyYAML gets wrong here.
    if not _OTHER_BREAKS.isdisjoint(value) or ("\n" in value and value[0] in " \t\n"):
        return dumper.represent_scalar(tag, value, style='"')
    if "\n" in value:
        return dumper.represent_scalar(tag, value, style="|")
    read_as = dumper.resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
    plain = read_as == tag and value not in _OLD_BOOLEANS
    return dumper.represent_scalar(tag, value, style=None if plain else '"')


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def yaml_text(value: Any) -> str:
    """One YAML document, with a newline at the end and no marker before it."""
    text: str = yaml.dump(
        to_plain(value),
        Dumper=_Dumper,
        indent=4,
        width=1 << 30,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text.removesuffix("...\n")


def yaml_documents(values: Iterable[Any]) -> Iterator[str]:
    """Each value as YAML, those after the first preceded by a `---` line."""
    separator = ""
    for value in values:
        yield separator + yaml_text(value)
        separator = "---\n"


class _Loader(yaml.SafeLoader):
    """Scalars stay text (the field's type decides what they mean), but for null and merge keys."""


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, r) for tag, r in resolvers if tag.endswith((":null", ":merge"))])
}


def from_yaml(text: str, row_type: type, unknown: Callable[[str], object] | None = None) -> Any:
    """An object of `row_type`; `unknown` is told each field that the type does not have.

    Raises:
        UnreadableObject: no YAML, or a value that its field does not take.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UnreadableObject(f"no YAML: {error}") from error
    if isinstance(row_type, type) and issubclass(row_type, msgspec.Struct) and value is None:
        value = {}
    return from_plain(value, row_type, unknown)

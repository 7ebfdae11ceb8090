# SPDX-License-Identifier: Apache-2.0
"""Objects to JSON and YAML and back."""

from __future__ import annotations

import collections.abc
import enum
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from statedb.errors import UnreadableObject
from statedb.shown.plain import from_plain, json_line, json_text, to_plain
from statedb.shown.yaml_form import from_yaml, yaml_text
from tests.statedb_application import Author, Book, Kind, Shelf

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Address(bytes):
    """Like an address of the tables: bytes that print and parse as text."""

    def __str__(self) -> str:
        return self.hex(":")

    @classmethod
    def parse(cls, text: str) -> Address:
        return cls(bytes.fromhex(text.replace(":", "")))


class PersistentMap(collections.abc.Mapping[str, int]):
    def __init__(self, content: dict[str, int]) -> None:
        self._content = content

    def __getitem__(self, key: str) -> int:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Everything(msgspec.Struct, frozen=True):
    address: Address
    ip: IPv4Address
    level: Level
    number: int
    ratio: float
    flag: bool
    text: str
    raw: bytes
    maybe: int | None
    inner: Author
    many: tuple[Author, ...]
    by_name: dict[str, Author]
    by_address: dict[Address, int] = {}
    some: frozenset[Address] = frozenset()


EVERYTHING = Everything(
    Address(b"\x0a\x01"),
    IPv4Address("10.0.0.1"),
    Level.HIGH,
    1 << 40,
    0.5,
    True,
    "on",
    b"\x00\xff",
    None,
    Author("a", 1),
    (Author("b"), Author("c", 3)),
    {"z": Author("z"), "a": Author("a")},
    {Address(b"\x02"): 2},
    frozenset([Address(b"\x09"), Address(b"\x03")]),
)


def test_fields_keep_their_order_and_sets_are_sorted() -> None:
    plain = to_plain(EVERYTHING)
    assert list(plain)[:4] == ["address", "ip", "level", "number"]
    assert plain["address"] == "0a:01"
    assert plain["ip"] == "10.0.0.1"
    assert plain["level"] == "high"
    assert plain["by_address"] == {"02": 2}
    assert sorted(plain["some"]) == plain["some"] == ["03", "09"]
    assert list(plain["by_name"]) == ["a", "z"]
    many = Shelf(1, "x", frozenset(map(str, range(100, 200))))
    assert list(to_plain(many)["holds"]) == sorted(many.holds)
    assert msgspec.json.decode(json_line(many))["holds"] == sorted(many.holds)
    assert to_plain(PersistentMap({"b": 1, "a": 2})) == {"a": 2, "b": 1}


def test_json_and_yaml_say_the_same() -> None:
    said = {**to_plain(EVERYTHING), "many": list(to_plain(EVERYTHING)["many"])}
    assert msgspec.json.decode(json_text(EVERYTHING)) == said
    assert msgspec.json.decode(json_line(EVERYTHING)) == said
    assert yaml.safe_load(yaml_text(EVERYTHING)) == said
    assert b"\n" not in json_line(EVERYTHING)


@pytest.mark.parametrize("write", [json_text, yaml_text])
def test_object_survives_text(write: Any) -> None:
    assert from_yaml(write(EVERYTHING), Everything) == EVERYTHING


def test_object_survives_the_wire() -> None:
    assert from_plain(msgspec.json.decode(json_line(EVERYTHING)), Everything) == EVERYTHING


@given(st.text())
def test_any_text_survives_yaml(text: str) -> None:
    printable = "".join(c for c in text if c.isprintable() or c in "\n\t")
    shelf = Shelf(1, printable)
    assert from_yaml(yaml_text(shelf), Shelf) == shelf


@given(PLAIN)
@example([{"\n0": None}])
@example({"a\nb": ["\n c", {"\n": "\n"}]})
def test_yaml_is_read_back_by_any_reader(value: Any) -> None:
    assert yaml.safe_load(yaml_text({"value": value})) == {"value": value}


def test_yaml_has_the_form_of_go() -> None:
    value = {
        "plain": "a",
        "number-like": "1",
        "bool-like": "true",
        "empty": "",
        "special": "a: b",
        "lines": "one\ntwo\n",
        "none": None,
        "list": [{"x": 1, "y": [1]}, "z", [1, 2]],
        "nested": {"deeper": {"list": ["v"]}},
        "no-list": [],
        "no-map": {},
        "long": "word " * 40 + "end",
    }
    assert yaml_text(value) == (
        'bool-like: "true"\nempty: ""\nlines: |\n    one\n    two\n'
        'list:\n    - x: 1\n      "y":\n        - 1\n    - z\n    - - 1\n      - 2\n'
        f"long: {'word ' * 40}end\n"
        "nested:\n    deeper:\n        list:\n            - v\n"
        "no-list: []\nno-map: {}\nnone: null\nnumber-like: \"1\"\nplain: a\nspecial: 'a: b'\n"
    )


def test_field_names_are_found_whatever_their_writing() -> None:
    text = "RoomName: north\nNUMBER: 3\nholds: [a]"
    assert from_yaml(text, Shelf) == Shelf(3, "north", frozenset("a"))
    assert from_yaml("room-name: x", Shelf) == Shelf(0, "x")


def test_absent_fields_have_their_zero_value() -> None:
    assert from_yaml("", Shelf) == Shelf(0, "")
    assert from_yaml("title:", Book) == Book("", 0)
    zero = from_yaml("ip: 10.0.0.1", Everything)
    assert zero == Everything(
        Address(),
        IPv4Address("10.0.0.1"),
        Level.LOW,
        0,
        0.0,
        False,
        "",
        b"",
        None,
        Author(""),
        (),
        {},
    )


def test_missing_field_is_named_when_its_type_has_no_zero() -> None:
    with pytest.raises(UnreadableObject, match=r"Everything.*`ip`"):
        from_yaml("number: 1", Everything)


def test_unknown_fields_are_told_wherever_they_stand() -> None:
    told: list[str] = []
    text = "title: Emma\npages: 3\nauthor:\n    nom: Jane\nyear: 1815"
    assert from_yaml(text, Book, told.append) == Book("Emma", 1815, Author(""))
    assert told == ["pages", "nom"]


@pytest.mark.parametrize(
    ("text", "book"),
    [
        ("title: 1984", Book("1984", 0)),  # text stays text in a text field
        ("title: yes", Book("yes", 0)),
        ("title: 2020-01-01", Book("2020-01-01", 0)),
        ("in_print: yes", Book("", 0, in_print=True)),
        ("in_print: Off", Book("", 0)),
        ("in_print: true", Book("", 0, in_print=True)),
        ("year: 0x10", Book("", 16)),
        ("year: -5", Book("", -5)),
        ("author: {name: x, born: 0o17}", Book("", 0, Author("x", 15))),
        ("author: {name: x, born: null}", Book("", 0, Author("x"))),
        ("kind: manual", Book("", 0, kind=Kind.MANUAL)),
        ("path: a/b", Book("", 0, path=PurePosixPath("a/b"))),
    ],
)
def test_scalars_are_read_as_their_field_says(text: str, book: Book) -> None:
    assert from_yaml(text, Book) == book


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title: [", "no YAML"),
        ("year: autumn", "year"),
        ("kind: poem", "kind"),
        ("- title: x", "no Book"),
        ("just text", "no Book"),
        ("tags: {a: b}", "tags"),
    ],
)
def test_unreadable_text_is_told(text: str, reason: str) -> None:
    with pytest.raises(UnreadableObject, match=reason):
        from_yaml(text, Book)


def test_bad_address_is_told_with_its_field() -> None:
    with pytest.raises(UnreadableObject, match="address"):
        from_yaml("address: xyz\nip: 10.0.0.1", Everything)

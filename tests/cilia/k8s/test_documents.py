# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cilia.k8s.documents import Document, read_json, read_yaml

# Line breaks of other alphabets are folded by the writer already, and it takes 1e5 for no number.
text = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]) | st.just("\n"), max_size=9
).filter(lambda written: not re.fullmatch(r"[-+]?[0-9]+[eE][-+]?[0-9]+", written))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(text.filter(bool), inner, max_size=3)
    ),
    max_leaves=12,
)


def one(data: bytes) -> Document:
    [document] = read_yaml(data)
    return document


@given(st.lists(plain, min_size=1, max_size=3))
def test_what_pyyaml_writes_is_read_back(values: list[Any]) -> None:
    written = yaml.safe_dump_all(values, explicit_start=True, allow_unicode=True)
    forms = [document.form for document in read_yaml(written.encode())]
    assert forms == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ("12:30", "12:30"),
        ("'1'", "1"),
        ("yes", True),
        ("1.5", 1.5),
        ("-3", -3),
        ("0x10", "0x10"),
        ("~", None),
        ("", None),
        ("''", ""),
        ("!!str 5", "5"),
        ("1.2.3.4", "1.2.3.4"),
        ("+", "+"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    form = one(f"a: {text}\n".encode()).form
    assert form == {"a": value}
    assert type(form["a"]) is type(value)


def test_anchors_and_merge_keys() -> None:
    document = one(b"a: &x {p: 1, q: 2}\nb: *x\nc:\n  <<: *x\n  q: 3\n")
    assert document.form == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 3}}


def test_documents_are_numbered_by_content_and_broken_ones_are_named() -> None:
    first, broken, last = read_yaml(
        b"---\n# only words\n---\na: 1\n"
        b"---\nkind: Service\nmetadata:\n  labels: {}\n  namespace: test\n  name: 'echo'\nspec: [\n"
        b"--- # the last\nb: 2\n"
    )
    assert (first.number, first.form) == (1, {"a": 1})
    assert (broken.number, broken.kind, broken.namespace, broken.name) == (
        2,
        "Service",
        "test",
        "echo",
    )
    assert broken.error.startswith("line 12:")
    assert (last.number, last.form) == (3, {"b": 2})


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"a: 1\nb: 2\na: 3\n", "line 3: key 'a' is given twice"),
        (b"a: *x\n", "line 1: no anchor 'x'"),
        (b"&a [*a]", "line 1: no anchor 'a'"),
        (b"a: !!python/object:os.system x\n", "line 1: tag"),
        (b"a: !!python/object:os.system {}\n", "line 1: tag"),
        (b"? [a]\n: 1\n", "line 1: a key is not a text"),
        (b"[" * 100, "line 1: nested deeper"),
        (b"a: \x00", "#x0000"),
        (b"a: b\n...\nc: d\n", "line 3"),
        (b"\ta: b\n", "line 1"),
        (b"%YAML 9\n", ""),
    ],
)
def test_a_malformed_document_says_where(data: bytes, error: str) -> None:
    documents = read_yaml(data)
    if not error:
        assert documents == []
        return
    assert error in documents[0].error
    assert documents[0].form is None


@given(st.binary(max_size=60))
def test_any_bytes_give_documents_or_errors(data: bytes) -> None:
    for reader in (read_yaml, read_json):
        for document in reader(data):
            assert document.number > 0


def test_windows_line_ends() -> None:
    assert [d.form for d in read_yaml(b"a: 1\r\n---\r\nb: 2\r\n")] == [{"a": 1}, {"b": 2}]


def test_json() -> None:
    assert read_json(b'{"a": 1}') == [Document(1, {"a": 1})]
    assert read_json(b" \n") == []
    [broken] = read_json(b'{\n"a": }')
    assert broken.error.startswith("line 2:")

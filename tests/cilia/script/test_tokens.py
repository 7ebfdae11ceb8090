# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.script.errors import ParseError
from cilia.script.tokens import Guard, Line, Want, parse_line, quote, raw_text


def parsed(text: str) -> Line:
    line = parse_line(text)
    assert line is not None
    return line


def words(text: str) -> list[str]:
    return [raw_text(word) for word in parsed(text).words]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cmd a  b\tc\r", ["a", "b", "c"]),
        ("   cmd a", ["a"]),
        ("cmd a # b", ["a"]),
        ("cmd a#b c", ["a"]),
        ("cmd 'a # b'", ["a # b"]),
        ("cmd 'it''s'", ["it's"]),
        ("cmd ''", [""]),
        ("cmd ''''", ["'"]),
        ("cmd a'b c'd''e", ["ab cde"]),
        ('cmd "a b"', ['"a', 'b"']),
        (r"cmd a\ b \\", ["a\\", "b", "\\\\"]),
        ("cmd a\vb", ["a\vb"]),
    ],
)
def test_words_are_split_and_quoted(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_only_unquoted_fragments_are_to_be_expanded() -> None:
    (word,) = parsed("cmd a'$B c'$D").words
    assert [(part.text, part.quoted) for part in word] == [
        ("a", False),
        ("$B c", True),
        ("$D", False),
    ]


@pytest.mark.parametrize("text", ["", "  \t", "# note", "   # indented", "\r"])
def test_blank_lines_and_comments_are_no_commands(text: str) -> None:
    assert parse_line(text) is None


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("cmd", Want.SUCCESS),
        ("! cmd", Want.FAILURE),
        ("? cmd", Want.EITHER),
        ("* cmd", Want.RETRY_UNTIL_SUCCESS),
        ("!* cmd", Want.RETRY_UNTIL_FAILURE),
        ("cmd !", Want.SUCCESS),
        ("[x] ! cmd", Want.FAILURE),
        ("! [x] cmd", Want.FAILURE),
    ],
)
def test_prefixes_come_before_the_name(text: str, want: Want) -> None:
    line = parsed(text)
    assert (line.want, line.name) == (want, "cmd")


@pytest.mark.parametrize(
    ("text", "guards"),
    [
        ("[a] cmd", [Guard("a", True)]),
        ("[!a] [b:c] cmd [d]", [Guard("a", False), Guard("b:c", True)]),
        ("[a] ! [b] cmd", [Guard("a", True), Guard("b", True)]),
    ],
)
def test_any_number_of_guards_is_taken(text: str, guards: list[Guard]) -> None:
    assert list(parsed(text).guards) == guards


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cmd 'a", "unterminated"),
        ("cmd 'a''", "unterminated"),
        ("! ? cmd", "more than one"),
        ("! ! cmd", "more than one"),
        ("* !* cmd", "more than one"),
        ("[] cmd", "empty condition"),
        ("[!] cmd", "empty condition"),
        ("!", "missing command"),
        ("* # nothing", "missing command"),
        ("[a]", "missing command"),
        ("'quoted'", "missing command"),
    ],
)
def test_bad_lines_are_refused(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_line(text)


def test_a_quoted_prefix_is_not_a_prefix() -> None:
    line = parsed("'!' cmd a")
    assert (line.want, line.name, [raw_text(w) for w in line.words]) == (
        Want.SUCCESS,
        "cmd",
        ["!", "a"],
    )


@pytest.mark.parametrize(
    ("text", "background", "expected"),
    [
        ("cmd a &", True, ["a"]),
        ("cmd &", True, []),
        ("cmd '&'", False, ["&"]),
        ("cmd & a", False, ["&", "a"]),
        ("cmd a&", False, ["a&"]),
    ],
)
def test_a_trailing_ampersand_means_background(
    text: str, background: bool, expected: list[str]
) -> None:
    assert (parsed(text).background, words(text)) == (background, expected)


@given(st.lists(st.text("ab '#$\t", max_size=5)))
def test_quoted_arguments_parse_to_themselves(arguments: list[str]) -> None:
    assert words(f"cmd {quote(arguments)} end") == [*arguments, "end"]

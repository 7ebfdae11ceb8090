# SPDX-License-Identifier: Apache-2.0
"""Each row of a match or a replacement was checked against Go's regexp package."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.script.goregexp import RegexpError, compile_re2, quote_meta


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        # Anchors
        ("b$", "a\nb\n", []),
        ("(?m)b$", "a\nb\n", ["b"]),
        (r"b\z", "ab", ["b"]),
        (r"b\z", "ab\n", []),
        (r"\Aa", "a\na", ["a"]),
        ("^a", "a\na", ["a"]),
        ("(?m)^a", "a\na", ["a", "a"]),
        (r"\ba", "a éa", ["a", "a"]),
        (r"\B", "", [""]),
        # Dots and flags
        ("a.b", "a\nb", []),
        ("(?s)a.b", "a\nb", ["a\nb"]),
        ("a(?i)b", "aB AB", ["aB"]),
        ("a(?i:b)b", "aBb abB", ["aBb"]),
        ("(a(?i)b|c)C", "aBC CC cC", ["aBC", "CC", "cC"]),
        ("(?i)ß|é", "É", ["É"]),
        ("(?U)a+", "aaa", ["a", "a", "a"]),
        ("(?U)a+?", "aaa", ["aaa"]),
        ("(?i)a(?-i)b", "Ab AB", ["Ab"]),
        # Classes
        (r"\d+", "12٣", ["12"]),
        (r"\w+", "aé_1", ["a", "_1"]),
        (r"\s", "\v\t", ["\t"]),
        (r"\S", "\v\t", ["\v"]),
        (r"[^\S]", "a b", [" "]),
        (r"[\D]", "1a", ["a"]),
        ("[]a]+", "a]b", ["a]"]),
        ("[^]a]+", "a]b", ["b"]),
        ("[a-]+", "a-b", ["a-"]),
        ("[a&&b|~^[]+", "&&|~[^", ["&&|~[^"]),
        ("[[:alpha:]-]+", "a-1", ["a-"]),
        ("[[:^digit:]]+", "a1b", ["a", "b"]),
        ("[^a]", "\n", ["\n"]),
        (r"[\x41-\x{43}]+", "ABCD", ["ABC"]),
        (r"\pL+", "aé1", ["aé"]),
        (r"\p{Lu}", "aÉ", ["É"]),
        (r"\P{L}|\p{^L}", "a1", ["1"]),
        (r"\p{Greek}+", "aβγ1", ["βγ"]),
        ("(a*)*b", "a" * 60, []),
        # Literals and escapes
        (r"\Qa.b\E.", "a.bc axbc", ["a.bc"]),
        (r"\Qa.b", "a.b", ["a.b"]),
        (r"a\.b\/\-", "a.b/-", ["a.b/-"]),
        (r"\x41\101\n\a", "AA\n\a", ["AA\n\a"]),
        ("a{,2}", "a{,2} aa", ["a{,2}"]),
        ("a{", "a{", ["a{"]),
        ("a{2}b{1,}c{0,1}", "aabbc", ["aabbc"]),
        ("a{1,2}?", "aa", ["a", "a"]),
        # Groups, alternatives, repeats
        ("(?P<n>a)(?<m>b)", "ab", ["ab"]),
        ("a|ab", "ab", ["a"]),
        ("(|a)+", "aa", ["", "", ""]),
        ("a*", "baac", ["", "aa", ""]),
        ("(?:a|b)*?c", "abc", ["abc"]),
        (r"\.?", "a.b", ["", ".", ""]),
    ],
)
def test_matches_are_those_of_re2(pattern: str, text: str, expected: list[str]) -> None:
    assert compile_re2(pattern).find_all(text) == expected


@pytest.mark.parametrize(
    ("pattern", "piece"),
    [
        ("a(?=b)", "(?="),
        ("a(?!b)", "(?!"),
        ("(?<=a)b", "(?<="),
        ("(?<!a)b", "(?<!"),
        ("(?>a)", "(?>"),
        ("(?P=n)", "(?P"),
        ("(?#c)", "(?#"),
        ("(?x)a", "(?x"),
        (r"(a)\1", r"\1"),
        ("a++", "bad repetition operator: ++"),
        ("a**", "bad repetition operator: **"),
        ("a{2}{3}", "bad repetition operator: {2}{3}"),
        ("*a", "no argument for repetition operator: *"),
        ("(+)", "no argument for repetition operator: +"),
        ("a|?", "no argument for repetition operator: ?"),
        ("(a", "missing )"),
        ("a)", "unexpected )"),
        ("[a", "missing ]"),
        ("[b-a]", "b-a"),
        ("[[:nope:]]", "[:nope:]"),
        (r"\Z", r"\Z"),
        (r"\y", r"\y"),
        ("a\\", "trailing \\"),
        ("a{1001}", "invalid repetition size: {1001}"),
        ("a{3,2}", "invalid repetition size: {3,2}"),
        (r"\x{110000}", r"\x"),
    ],
)
def test_what_re2_lacks_is_refused_with_the_piece(pattern: str, piece: str) -> None:
    with pytest.raises(RegexpError) as caught:
        compile_re2(pattern)
    assert piece in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "template", "text", "expected"),
    [
        ("a(b)", "<$1>", "ab ab", "<b> <b>"),
        ("a(b)", "${1}x$1x", "ab", "bx"),
        ("(?P<n>b)", "$n-${n}", "ab", "ab-b"),
        ("b", "$$", "ab", "a$"),
        ("b", "$", "ab", "a$"),
        ("b", "$0$0", "ab", "abb"),
        ("b", "$9", "ab", "a"),
        ("b", r"\1", "ab", r"a\1"),
        ("(a)|b", "[$1]", "ab", "[a][]"),
        ("a*", "x", "baac", "xbxcx"),
    ],
)
def test_replacements_are_in_gos_form(
    pattern: str, template: str, text: str, expected: str
) -> None:
    assert compile_re2(pattern).replace_all(text, template) == expected


@given(st.text())
def test_a_quoted_text_matches_just_itself(text: str) -> None:
    assert compile_re2(f"^{quote_meta(text)}$").find_all(text) == [text]

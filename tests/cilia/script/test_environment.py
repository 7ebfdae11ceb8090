# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.script.environment import expand, format_duration, parse_duration, unquote
from cilia.script.state import State


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A", "<A>"),
        ("${A}", "<A>"),
        ("x$A.b", "x<A>.b"),
        ("$A_1-", "<A_1>-"),
        ("${a b}", "<a b>"),
        ("${/}${:}", "</><:>"),
        ("$1x", "<1>x"),
        ("$$", "<$>"),
        ("a$", "a$"),
        ("a$ b", "a$ b"),
        ("$.", "$."),
        ("${}x", "x"),
        ("${x", "x"),
        ("$é", "$é"),
    ],
)
def test_variables_are_expanded_as_go_does(text: str, expected: str) -> None:
    assert expand(text, lambda name: f"<{name}>") == expected


def test_variables_that_are_always_defined(state: State) -> None:
    work = str(state.workdir)
    assert state.env["WORK"] == state.env["PWD"] == work
    assert state.env["TMPDIR"] == f"{work}/tmp"
    assert (state.workdir / "tmp").is_dir()
    assert state.expand("a${/}b${:}c$UNDEFINED.") == "a/b:c."


def test_values_are_quoted_in_regular_expressions(state: State) -> None:
    state.env["A"] = "1.2(3)"
    assert state.expand("^$A$", in_regexp=True) == r"^1\.2\(3\)$"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a\nb\t\"\\", 'a\nb\t"\\'),
        (r"\x41\101\u0041\U0001F600", "AAA😀"),
        (r"\xc3\xa9", "é"),
        (r"\a\b\f\r\v", "\a\b\f\r\v"),
        ("plain é", "plain é"),
    ],
)
def test_unquote_reads_the_inside_of_a_go_string(text: str, expected: str) -> None:
    assert unquote(text) == expected


@pytest.mark.parametrize(
    "text", ["\\", r"\q", r"\'", 'a"b', "a\nb", r"\x4", r"\400", r"\ud800", r"\U00110000", r"\1"]
)
def test_unquote_refuses_what_go_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="Go string"):
        unquote(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("100ms", 0.1),
        ("1.5h", 5400),
        ("2h45m", 9900),
        ("-1.5s", -1.5),
        ("+5us", 5e-6),
        ("3µs", 3e-6),
        ("7ns", 7e-9),
        (".5s", 0.5),
        ("1.s", 1),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1s2", "-", "1.2.3s", " 1s", "1 s", "١s"])
def test_bad_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(-(10**15), 10**15))
def test_a_printed_duration_reads_as_itself(nanoseconds: int) -> None:
    seconds = nanoseconds / 1e9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42, "42s"), (1800, "30m0s"), (1e-9, "1ns"), (0.0015, "1.5ms"), (-60, "-1m0s"), (2e-6, "2µs")],
)
def test_durations_are_printed_as_go_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tables.selectors import parse_selector

LABELS = {"zone": "a", "example.com/disk": "ssd", "gpu": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("zone", True),
        ("!zone", False),
        ("! rack", True),
        ("zone=a", True),
        ("zone == a", True),
        ("zone!=a", False),
        ("rack!=a", True),
        ("gpu=", True),
        ("zone in (a, b)", True),
        ("zone in (b)", False),
        ("zone notin (b,c)", True),
        ("zone notin (a,c)", False),
        ("rack notin (a)", True),
        ("rack in (a)", False),
        ("zone in (a,b),example.com/disk=ssd, !rack", True),
        ("zone=a,example.com/disk=hdd", False),
    ],
)
def test_requirements(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(LABELS) is matches


def test_a_selector_is_refused_when_it_is_too_long() -> None:
    with pytest.raises(ValueError, match="10002 characters"):
        parse_selector("a," * 5001)


@pytest.mark.parametrize("text", ["(", "zone in", "zone in a", "!zone=a", "zone=a,", "a b", "=a"])
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a label requirement"):
        parse_selector(text)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from cilia.script.errors import FlagError
from cilia.script.flags import (
    Flag,
    HelpRequested,
    asks_for_help,
    flag_help,
    parse_flags,
    synopsis,
)

FLAGS = (
    Flag("out", "o", "str", help="where to"),
    Flag("quiet", "q", help="say less"),
    Flag("trim", "t"),
    Flag("count", kind="int"),
    Flag("ratio", kind="float"),
    Flag("timeout", kind="duration", default=5.0, help="how long"),
    Flag("columns", kind="strings"),
    Flag("fail", "f", "optional"),
)


@pytest.mark.parametrize(
    ("arguments", "values", "rest"),
    [
        (["a", "--out=x", "b"], {"out": "x"}, ["a", "b"]),
        (["--out", "x", "b"], {"out": "x"}, ["b"]),
        (["-o", "x"], {"out": "x"}, []),
        (["-o=x"], {"out": "x"}, []),
        (["-ox"], {"out": "x"}, []),
        (["-qtox", "y"], {"quiet": True, "trim": True, "out": "x"}, ["y"]),
        (["-q=false", "--trim=1"], {"quiet": False, "trim": True}, []),
        (["--quiet", "false"], {"quiet": True}, ["false"]),
        (["a", "--", "-q", "--out"], {}, ["a", "-q", "--out"]),
        (["-", "-q"], {"quiet": True}, ["-"]),
        (["--out", "-q"], {"out": "-q"}, []),
        (["--out="], {"out": ""}, []),
        (["--count=0x10"], {"count": 16}, []),
        (["--ratio=0.1"], {"ratio": 0.1}, []),
        (["--timeout=1m"], {"timeout": 60.0}, []),
        (["--columns=a,b", "--columns", "c"], {"columns": ["a", "b", "c"]}, []),
        (["-f", "a"], {"fail": "true"}, ["a"]),
        (["-f=yaml", "a"], {"fail": "yaml"}, ["a"]),
        (["--out=a", "--out=b"], {"out": "b"}, []),
    ],
)
def test_flags_are_read_as_pflag_does(
    arguments: list[str], values: dict[str, Any], rest: list[str]
) -> None:
    defaults: dict[str, Any] = {
        "out": "",
        "quiet": False,
        "trim": False,
        "count": 0,
        "ratio": 0.0,
        "timeout": 5.0,
        "columns": [],
        "fail": "",
    }
    assert parse_flags(FLAGS, arguments) == ({**defaults, **values}, rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["-qx"], "unknown shorthand flag: 'x' in -qx"),
        (["--out"], "flag needs an argument: --out"),
        (["-qo"], "flag needs an argument: 'o' in -qo"),
        (["--count=x"], 'invalid argument "x" for "--count" flag'),
        (["-q=maybe"], 'invalid argument "maybe" for "-q, --quiet" flag'),
        (["--=x"], "bad flag syntax"),
        (["---x"], "bad flag syntax"),
    ],
)
def test_bad_flags_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError, match=message):
        parse_flags(FLAGS, arguments)


@pytest.mark.parametrize("argument", ["-h", "--help", "-qh"])
def test_help_is_asked_for_unless_the_flag_is_taken(argument: str) -> None:
    with pytest.raises(HelpRequested):
        parse_flags(FLAGS, ["a", argument])
    assert parse_flags([Flag("host", "h")], ["-h"]) == ({"host": True}, [])


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["-h"], True),
        (["ls", "--help"], True),
        (["sh", "-c", "-h"], False),
        (["-", "-h"], True),
        (["--", "-h"], False),
        (["a"], False),
    ],
)
def test_help_of_commands_without_flags(arguments: list[str], asked: bool) -> None:
    assert asks_for_help(arguments) is asked


def test_help_shows_every_flag_with_type_and_default() -> None:
    assert synopsis(FLAGS[:2]) == "[-oq] [--out=string] [--quiet] "
    assert synopsis(()) == ""
    assert flag_help((FLAGS[0], FLAGS[1], FLAGS[5])) == [
        "  -o, --out string         where to",
        "  -q, --quiet              say less",
        "      --timeout duration   how long (default 5s)",
    ]

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.script.errors import ParseError
from cilia.script.state import State
from cilia.script.txtar import Archive, File, parse, render


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cmd\n", Archive("cmd\n")),
        ("", Archive("")),
        ("cmd", Archive("cmd\n")),
        ("-- a --\n", Archive("", (File("a", ""),))),
        ("x\n-- a --\n1\n-- b/c --\n2", Archive("x\n", (File("a", "1\n"), File("b/c", "2\n")))),
        ("--   a b   --\n\n\n", Archive("", (File("a b", "\n\n"),))),
        # Not markers: nothing between, no blank, not at the start, not at the end of the line.
        ("--  --\n", Archive("--  --\n")),
        ("-- --\n", Archive("-- --\n")),
        ("--a --\n", Archive("--a --\n")),
        (" -- a --\n", Archive(" -- a --\n")),
        ("-- a -- \n", Archive("-- a -- \n")),
    ],
)
def test_archive_is_split_at_marker_lines(text: str, expected: Archive) -> None:
    assert parse(text.encode()) == expected


def test_there_is_no_escape_when_content_looks_like_a_marker() -> None:
    assert [file.name for file in parse(b"-- a --\n-- b --\n").files] == ["a", "b"]


_LINE = st.text(st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]), max_size=9)
_CONTENT = st.lists(_LINE.filter(lambda line: not line.startswith("-- ")), max_size=4).map(
    lambda lines: "".join(f"{line}\n" for line in lines)
)
_NAME = st.text("abc/.$", min_size=1, max_size=8)
_ARCHIVE = st.builds(
    Archive, _CONTENT, st.lists(st.builds(File, _NAME, _CONTENT), max_size=3).map(tuple)
)


@given(_ARCHIVE)
def test_parse_gives_back_what_render_wrote(archive: Archive) -> None:
    assert parse(render(archive)) == archive


def test_bytes_that_are_no_text_survive() -> None:
    data = b"cmd\n-- a --\n\xff\x00\r\n"
    assert render(parse(data)) == data


def test_files_are_written_verbatim_under_expanded_names(state: State) -> None:
    state.env["D"] = "deep"
    state.extract(Archive("", (File("${D}/er/x", "$D stays\n"),)))
    assert (state.workdir / "deep/er/x").read_text() == "$D stays\n"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "$WORK/../x", "."])
def test_a_file_outside_of_the_work_directory_is_refused(state: State, name: str) -> None:
    with pytest.raises(ParseError, match="outside"):
        state.extract(Archive("", (File(name, "x\n"),)))


def test_an_absolute_name_within_the_work_directory_is_taken(state: State) -> None:
    state.extract(Archive("", (File("$WORK/x", "x\n"),)))
    assert state.read_text("x") == "x\n"

# SPDX-License-Identifier: Apache-2.0
"""Commands that check files and buffers: cmp cmpenv empty grep stdout stderr.

None of them has output of its own: what they found goes to the log, and the buffers stay.
"""

from __future__ import annotations

import difflib

from cilia.script.commands import Command, Flag
from cilia.script.errors import CommandFailed
from cilia.script.files import need
from cilia.script.goregexp import compile_re2
from cilia.script.state import Flags, State

# In update mode a retried comparison is given this many retries to settle before it is recorded.
UPDATE_AFTER_RETRIES = 2


def _cmp(state: State, flags: Flags, args: list[str]) -> None:
    _compare(state, flags, args, expanded=False)


def _cmpenv(state: State, flags: Flags, args: list[str]) -> None:
    _compare(state, flags, args, expanded=True)


def _compare(state: State, flags: Flags, args: list[str], *, expanded: bool) -> None:
    need(args, 2, 2)
    first, second = (state.read_text(name) for name in args)
    if expanded:
        first, second = state.expand(first), state.expand(second)
    if first == second or _update(state, args, (first, second)):
        return
    if not flags["quiet"]:
        state.log(unified_diff(args[0], first, args[1], second))
    raise CommandFailed(f"{args[0]} and {args[1]} differ")


def _update(state: State, names: list[str], texts: tuple[str, str]) -> bool:
    """In update mode record what is there as what is expected."""
    if not state.update_golden:
        return False
    if not all(texts):
        state.log("not updated, as one of them is empty: use the command empty\n")
        return False
    if state.retrying and state.retry_count < UPDATE_AFTER_RETRIES:
        return False
    golden = _golden_side(state, names, texts)
    state.record_golden(names[golden], texts[1 - golden])
    return True


def _golden_side(state: State, names: list[str], texts: tuple[str, str]) -> int:
    """Which of the two is the expected one: scripts use both orders.

    It is a file of the archive that nothing has changed since; if both are, it is the second.
    """
    for side in (1, 0):
        file = state.archived(names[side])
        if file is not None and texts[side] in (file.content, state.expand(file.content)):
            return side
    return 0 if state.archived(names[0]) and not state.archived(names[1]) else 1


def unified_diff(name: str, text: str, other_name: str, other: str) -> str:
    """A unified diff that shows where a last newline is missing."""
    lines = difflib.unified_diff(_lines(text), _lines(other), name, other_name, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":
        return lines[:-1]
    lines[-1] += "\n\\ No newline at end of file"
    return lines


def _empty(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1, 1)
    text = state.read_text(args[0])
    if not (text.strip() if flags["trim"] else text):
        return
    if not flags["quiet"]:
        state.log(unified_diff(args[0], text, "(empty)", ""))
    raise CommandFailed(f"{args[0]} is not empty")


def _grep(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 2, 2)
    # The name of a buffer means the buffer, as it does everywhere.
    _match(state, flags, args[0], state.read_text(args[1]), args[1])


def _stdout(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1, 1)
    _match(state, flags, args[0], state.stdout, "stdout")


def _stderr(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1, 1)
    _match(state, flags, args[0], state.stderr, "stderr")


def _match(state: State, flags: Flags, pattern: str, text: str, name: str) -> None:
    regexp = compile_re2(f"(?m){pattern}")
    wanted = flags["count"]
    matches = regexp.find_all(text)
    if wanted > 0 and len(matches) != wanted:
        raise CommandFailed(f"{len(matches)} matches for `{pattern}` in {name}, not {wanted}")
    if not matches:
        raise CommandFailed(f"no match for `{pattern}` in {name}")
    if not flags["quiet"]:
        state.log(f"matched: {regexp.lines_of_first(text)}\n")


_QUIET = Flag("quiet", "q", help="do not log the difference")
_MATCH_FLAGS = (
    Flag("count", kind="int", help="the exact number of matches"),
    Flag("quiet", "q", help="do not log the match"),
)
_MATCH_DETAIL = (
    "Succeeds if there is a match, or exactly --count matches; ^ and $ are those of each line.",
)

CHECK_COMMANDS = (
    Command(
        "cmp",
        "check that two files are equal, byte for byte",
        _cmp,
        "FILE FILE",
        ("Each may be stdout or stderr. The order is free.",),
        (_QUIET,),
    ),
    Command(
        "cmpenv",
        "as cmp, after expanding variables in both",
        _cmpenv,
        "FILE FILE",
        flags=(_QUIET,),
    ),
    Command(
        "empty",
        "check that a file is empty",
        _empty,
        "FILE",
        ("FILE may be stdout or stderr.",),
        (_QUIET, Flag("trim", "t", help="white space does not count")),
    ),
    Command(
        "grep",
        "check that a file matches a regular expression",
        _grep,
        "'REGEXP' FILE",
        _MATCH_DETAIL,
        _MATCH_FLAGS,
        regexp_args=True,
    ),
    Command(
        "stdout",
        "check that stdout matches a regular expression",
        _stdout,
        "'REGEXP'",
        _MATCH_DETAIL,
        _MATCH_FLAGS,
        regexp_args=True,
    ),
    Command(
        "stderr",
        "check that stderr matches a regular expression",
        _stderr,
        "'REGEXP'",
        _MATCH_DETAIL,
        _MATCH_FLAGS,
        regexp_args=True,
    ),
)

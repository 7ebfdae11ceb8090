# SPDX-License-Identifier: Apache-2.0
"""Commands on files: cat cd chmod cp exists mkdir mv replace rm sed symlink.

Only `cat` has output; all others leave the buffers alone, so that a file can be prepared between a
command and the check of its output.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from cilia.script import txtar
from cilia.script.commands import Command, Flag, Output
from cilia.script.environment import unquote
from cilia.script.errors import CommandFailed, UsageError
from cilia.script.goregexp import compile_re2
from cilia.script.outcomes import describe
from cilia.script.state import BUFFERS, Flags, State


def need(args: list[str], least: int, most: int | None = None) -> None:
    """Refuse a wrong number of arguments: fewer than `least`, or more than `most`."""
    if len(args) < least or (most is not None and len(args) > most):
        raise UsageError(f"usage: {len(args)} arguments given")


def _cat(state: State, flags: Flags, args: list[str]) -> Output:
    need(args, 1)
    parts = list[str]()
    try:
        for name in args:
            parts.append(state.read_text(name))
    except OSError as error:
        return Output("".join(parts), error=CommandFailed(describe(error)))
    return Output("".join(parts))


def _cd(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1, 1)
    state.chdir(args[0])


def _chmod(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 2)
    if not re.fullmatch(r"(0o?)?[0-7]{1,4}", args[0]) or int(args[0], 8) > 0o777:
        raise CommandFailed(f"invalid mode: {args[0]}")
    for name in args[1:]:
        state.path(name).chmod(int(args[0], 8))


def _cp(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 2)
    *sources, last = args
    target = state.path(last)
    if len(sources) > 1 and not target.is_dir():
        raise CommandFailed(f"cp: {last} is not a directory")
    for source in sources:
        content = txtar.encode(state.read_text(source))
        path = target / Path(source).name if target.is_dir() else target
        path.write_bytes(content)
        if source not in BUFFERS:
            shutil.copymode(state.path(source), path)


def _exists(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1)
    for name in args:
        mode = state.path(name).stat().st_mode
        if flags["readonly"] and mode & 0o222:
            raise CommandFailed(f"{name} exists but is writable")
        if flags["exec"] and not mode & 0o111:
            raise CommandFailed(f"{name} exists but is not executable")


def _mkdir(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1)
    for name in args:
        state.path(name).mkdir(parents=True, exist_ok=True)


def _mv(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 2, 2)
    state.path(args[0]).rename(state.path(args[1]))


def _rm(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1)
    for name in args:
        path = state.path(name)
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    # A directory without write permission could not be emptied by an ordinary user.
    for directory, _, _ in os.walk(path):
        os.chmod(directory, 0o777)
    shutil.rmtree(path)


def _symlink(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 3, 3)
    if args[1] != "->":
        raise UsageError("usage: symlink PATH -> TARGET")
    # The target is not made absolute: a link is relative to the directory it stands in.
    state.path(args[0]).symlink_to(args[2])


def _replace(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 1)
    *texts, name = args
    if len(texts) % 2:
        raise UsageError("usage: each old text needs a new one")
    pairs = [unquote(text) for text in texts]
    news: dict[str, str] = {}
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        news.setdefault(old, new)
    content = state.read_text(_file_name(name))
    if news:
        # Alternatives are tried in this order at each position: an earlier pair wins.
        olds = re.compile("|".join(re.escape(old) for old in news))
        content = olds.sub(lambda match: news[match[0]], content)
    state.write_text(name, content)


def _sed(state: State, flags: Flags, args: list[str]) -> None:
    need(args, 3, 3)
    pattern, template, name = args
    regexp = compile_re2(pattern)
    lines = state.read_text(_file_name(name)).split("\n")
    state.write_text(name, "\n".join(regexp.replace_all(line, template) for line in lines))


def _file_name(name: str) -> str:
    """A name that is a file's also if it is `stdout`: what is edited must be on disk."""
    return f"./{name}" if name in BUFFERS else name


FILE_COMMANDS = (
    Command("cat", "print files to stdout", _cat, "FILE..."),
    Command("cd", "change the current directory", _cd, "DIR"),
    Command(
        "chmod",
        "change permissions",
        _chmod,
        "PERM FILE...",
        ("PERM is an octal number.",),
    ),
    Command(
        "cp",
        "copy files",
        _cp,
        "SOURCE... TARGET",
        ("A source may be stdout or stderr; the target may be a directory.",),
    ),
    Command(
        "exists",
        "check that files exist",
        _exists,
        "FILE...",
        flags=(
            Flag("readonly", help="nobody may write it"),
            Flag("exec", help="somebody may execute it"),
        ),
    ),
    Command("mkdir", "make directories, with their parents", _mkdir, "DIR..."),
    Command("mv", "rename a file or directory", _mv, "OLD NEW"),
    Command("rm", "remove files and directories, with what is in them", _rm, "PATH..."),
    Command("symlink", "make a symbolic link", _symlink, "PATH -> TARGET"),
    Command(
        "replace",
        "replace texts in a file",
        _replace,
        "[OLD NEW]... FILE",
        (
            r"OLD and NEW are read as the inside of a Go string: \n, \t, \" and so on.",
            "All pairs are replaced in one pass; where several match, the first one wins.",
        ),
    ),
    Command(
        "sed",
        "replace what a regular expression matches, in each line of a file",
        _sed,
        "REGEXP REPLACEMENT FILE",
        ("The replacement may refer to groups: $1, ${1}, $name; quote it.",),
        regexp_args=True,
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Small files of JSON that a later run relies on: written whole or not at all.

A full disk or a power cut leaves the old content or the new one. A file that is broken all the same
(an older version wrote it in place, somebody edited it) is set aside, so that it stops nobody and
can be looked at.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog

from cilia.regular_files import NotRegular, read_regular

__all__ = [
    "BROKEN",
    "NEW",
    "make_directory",
    "name_of_record",
    "read_record",
    "replace_file",
    "set_aside",
    "write_record",
]

T = TypeVar("T")

#: Added to the name of a file that is set aside.
BROKEN: Final = ".broken"
#: Ends the name of a file that is being written; it begins with a dot.
NEW: Final = ".new"

#: How many names with a number are tried where somebody's directory has the name without one.
OTHER_NAMES: Final = 9

log = structlog.get_logger("records")


def write_record(path: Path, value: Any) -> None:
    """Replace the file's content in one step that survives a power cut; mode 0600.

    Raises: OSError (a full disk); the old content is still there then.
    """
    replace_file(path, msgspec.json.encode(value), durable=True)


def replace_file(path: Path, content: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """Replace the file's content in one step that a kill does not split.

    `durable`: wait until it is on the disk, which a record of a few bytes is worth.

    Raises: OSError (a full disk); the old content is still there then, and no other file.
    """
    new = path.with_name(f".{path.name}{NEW}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def read_record(path: Path, form: type[T]) -> T | None:
    """Return what was written last; None if there is no file, or if it had to be set aside.

    Raises: OSError other than that it is not there.
    """
    try:
        return msgspec.json.decode(read_regular(path), type=form)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, NotRegular) as error:
        set_aside(path, str(error))
        return None


def make_directory(path: Path) -> None:
    """Have a directory of records, mode 0700; what has its name and is none is set aside.

    Raises: OSError.
    """
    try:
        is_other = not stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        is_other = False
    if is_other:
        set_aside(path, "is no directory")
    path.mkdir(mode=0o700, exist_ok=True)


def set_aside(path: Path, reason: str) -> None:
    """Give what is there another name, under which nobody reads it; one from before is replaced.

    A directory can be in the way of that, so there are further names: `x.json.1.broken`.
    """
    refusal = ""
    for ending in ("", *(f".{number}" for number in range(1, OTHER_NAMES + 1))):
        aside = path.with_name(path.name + ending + BROKEN)
        try:
            path.replace(aside)
        except OSError as error:
            refusal = str(error)
        else:
            log.warning("a broken record was set aside", path=str(aside), error=reason)
            return
    text = "a broken record cannot be set aside, and is left out"
    log.error(text, path=str(path), reason=reason, error=refusal)


def name_of_record(name: str) -> str:
    """Return the record that a file is, was, or becomes: `7.json` of `7.json.2.broken`."""
    if name.startswith(".") and name.endswith(NEW):
        return name[1 : -len(NEW)]
    if not name.endswith(BROKEN):
        return name
    name = name.removesuffix(BROKEN)
    stem, _, number = name.rpartition(".")
    return stem if stem and number.isdigit() else name


def _sync_directory(directory: Path) -> None:
    """Make the new name last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

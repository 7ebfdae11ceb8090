# SPDX-License-Identifier: Apache-2.0
"""txtar archives: a script and the files it uses, in one text file.

    hive start                 the script is everything before the first marker line
    cmp stdout want
    -- want --                 a marker line: `-- NAME --`
    text                       the file's content, to the next marker or the end

There is no escape: a content line that looks like a marker is one. The format is that of
golang.org/x/tools/txtar. Text is kept byte for byte; what is not UTF-8 survives as surrogates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_START = "-- "
_END = " --"


@dataclass(frozen=True, slots=True)
class File:
    """One file of an archive; `content` ends in a newline unless it is empty."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Archive:
    """A script and its files, in the order in which they stand."""

    script: str
    files: tuple[File, ...] = field(default=())


def parse(data: bytes) -> Archive:
    r"""Split an archive; never fails, as any text is one.

    >>> parse(b"cat a\n-- a --\nhello")
    Archive(script='cat a\n', files=(File(name='a', content='hello\n'),))
    """
    sections = list(_sections(decode(data)))
    (_, script), *files = sections
    return Archive(script, tuple(File(name, text) for name, text in files))


def render(archive: Archive) -> bytes:
    """The archive as a file; the inverse of `parse` for archives that `parse` returned."""
    parts = [archive.script]
    for file in archive.files:
        parts += [f"{_START}{file.name}{_END}\n", file.content]
    return encode("".join(parts))


def decode(data: bytes) -> str:
    """Bytes as text, losslessly."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The inverse of `decode`."""
    return text.encode("utf-8", "surrogateescape")


def _sections(text: str) -> Iterator[tuple[str, str]]:
    name, lines = "", list[str]()
    for line in text.removesuffix("\n").split("\n") if text else ():
        marker = _marker_name(line)
        if marker:
            yield name, "".join(lines)
            name, lines = marker, []
        else:
            lines.append(f"{line}\n")
    yield name, "".join(lines)


def _marker_name(line: str) -> str:
    """The file name in a marker line, empty if the line is none."""
    if not (line.startswith(_START) and line.endswith(_END) and len(line) > len(_START)):
        return ""
    return line[len(_START) : -len(_END)].strip()

# SPDX-License-Identifier: Apache-2.0
"""An archive of named parts (tar, gzip) within a size, and reading it again.

Each part is made in a file of its own first: only then its size is known, and a part that breaks
off is there as far as it came. `sysdump.json`, the last member, says of each part how large it is,
and what is wrong with it.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

__all__ = ["INDEX", "ArchiveError", "Reader", "Writer"]

INDEX: Final = "sysdump.json"
IN_MEMORY: Final = 8 << 20  # a part that is larger than this is kept on disk meanwhile


class ArchiveError(Exception):
    """A file that is no archive of ours, or lacks what is asked for."""


class Writer:
    """`limit_bytes` bounds all parts together, before compression; what is beyond is cut."""

    def __init__(self, file: IO[bytes], limit_bytes: int, facts: dict[str, Any]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w:gz", compresslevel=6)  # noqa: SIM115  # `close` does
        self._left = limit_bytes
        self._index: dict[str, Any] = {**facts, "parts": []}

    def add(self, name: str, chunks: Iterable[bytes], expected: tuple[type[Exception], ...]) -> str:
        """Returns what is wrong with the part, or an empty text. Errors of the kinds that are
        expected end the part; others end the archive."""
        wrong = ""
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as spool:
            try:
                for chunk in chunks:
                    spool.write(chunk[: self._left])
                    self._left -= len(chunk)
                    if self._left < 0:
                        wrong, self._left = "cut: the archive has reached its size", 0
                        break
            except expected as error:
                wrong = str(error) or type(error).__name__
            size = spool.tell()
            spool.seek(0)
            self._member(name, spool, size)
        self._index["parts"].append({"name": name, "bytes": size, "error": wrong})
        return wrong

    def close(self) -> None:
        text = json.dumps(self._index, indent=2).encode()
        self._member(INDEX, io.BytesIO(text), len(text))
        self._tar.close()

    def _member(self, name: str, content: IO[bytes] | Any, size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, 0o600, int(time.time())
        self._tar.addfile(member, content)


class Reader:
    """Parts of an archive by name.

    Raises:
        ArchiveError: it is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tar = tarfile.open(path, "r:gz")  # noqa: SIM115  # `close` does
            self.index: dict[str, Any] = json.loads(b"".join(self._chunks(INDEX)))
        except (OSError, tarfile.TarError, ValueError, KeyError) as error:
            raise ArchiveError(f"{path} is no archive of `cilia sysdump`: {error}") from None

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a part, without their ends; an unfinished one at its end is left out."""
        try:
            chunks = self._chunks(name)
        except KeyError:
            raise ArchiveError(f"{self._path} has no {name}") from None
        rest = b""
        for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines

    def error(self, name: str) -> str:
        """What was wrong with a part."""
        return next((part["error"] for part in self.index["parts"] if part["name"] == name), "")

    def names(self) -> list[str]:
        return [part["name"] for part in self.index["parts"]]

    def close(self) -> None:
        self._tar.close()

    def _chunks(self, name: str) -> Iterator[bytes]:
        file = self._tar.extractfile(name)
        if file is None:
            raise KeyError(name)

        def read() -> Iterator[bytes]:
            while chunk := file.read(1 << 16):
                yield chunk

        return read()

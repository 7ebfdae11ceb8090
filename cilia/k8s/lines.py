# SPDX-License-Identifier: Apache-2.0
"""A stream of bytes as lines; what is left of a line is kept in pieces until its end comes."""

from __future__ import annotations

from typing import Final

from cilia.k8s.errors import Garbage

# An API server takes no object above 3 MB; an event has one, and its JSON may escape each byte.
MOST_LINE_BYTES: Final = 32 << 20


class Lines:
    """Linear in the number of bytes, whatever pieces they come in."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this piece, without their ends and without empty ones.

        Raises Garbage.
        """
        *ends, rest = chunk.split(b"\n")
        lines: list[bytes] = []
        for end in ends:
            self._parts.append(end)
            line = b"".join(self._parts).strip()
            self._parts, self._size = [], 0
            if line:
                lines.append(line)
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > MOST_LINE_BYTES:
            raise Garbage(f"a line of more than {MOST_LINE_BYTES} bytes")
        return lines

    @property
    def rest(self) -> bytes:
        """What came after the last line."""
        return b"".join(self._parts).strip()

# SPDX-License-Identifier: Apache-2.0
"""The hash of ``bpf/lib/lb_hash.h`` in Python: a flow's position in a Maglev table.

Bob Jenkins' lookup3 over 32-bit words (http://burtleburtle.net/bob/c/lookup3.c), as the kernel's
jhash2 computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

_MASK = 0xFFFFFFFF
_INIT = 0xDEADBEEF


def lb_hash(client: bytes, client_port: int, port: int, proto: int, seed: int) -> int:
    """``client``: 4 or 16 packed bytes; ``port``: that of the frontend."""
    words = [int.from_bytes(client[at : at + 4], "big") for at in range(0, len(client), 4)]
    return jhash([*words, port << 16 | client_port, proto], seed)


def jhash(words: Sequence[int], seed: int) -> int:
    """lookup3 of whole words, at least one."""
    a = b = c = (_INIT + (len(words) << 2) + seed) & _MASK
    while len(words) > 3:
        a, b, c = _mix((a + words[0]) & _MASK, (b + words[1]) & _MASK, (c + words[2]) & _MASK)
        words = words[3:]
    last = [*words, 0, 0, 0][:3]
    return _final((a + last[0]) & _MASK, (b + last[1]) & _MASK, (c + last[2]) & _MASK)


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & _MASK) ^ _rotate(c, bits)
        c = (c + b) & _MASK
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotate(b, bits)) & _MASK
        a, b, c = b, c, a
    return b

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cilia.k8s.errors import Garbage
from cilia.k8s.lines import MOST_LINE_BYTES, Lines


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b" ", b"a\nb"])))
def test_lines_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    lines, whole = Lines(), b"".join(pieces)
    found = [line for piece in pieces for line in lines.take(piece)]
    *ended, rest = [line.strip() for line in whole.split(b"\n")]
    assert found == [line for line in ended if line]
    assert lines.rest == rest


def test_a_long_line_costs_what_its_bytes_do() -> None:
    lines, piece = Lines(), bytes(1 << 14)
    began = time.thread_time()
    for _ in range(MOST_LINE_BYTES // len(piece)):
        lines.take(piece)
    assert time.thread_time() - began < 0.5  # each piece copied the line: 12 s
    with pytest.raises(Garbage, match="a line of more than"):
        lines.take(b"x")

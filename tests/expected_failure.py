# SPDX-License-Identifier: Apache-2.0
"""Tests and golden scripts that state what is right and fail until the product does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Final

import pytest

_HEAD: Final = "# expected failure: "


def expected_failure(script: Path) -> str:
    """Return the sentence of the script's line `# expected failure: SENTENCE`, or an empty text.

    The line stands among the comments before the first command.
    """
    lines = script.read_text(errors="replace").splitlines()
    for line in takewhile(lambda line: line.startswith("#"), lines):
        if line.startswith(_HEAD):
            return line.removeprefix(_HEAD)
    return ""


@contextmanager
def must_work() -> Iterator[None]:
    """Guard what a test needs before its fault shows: an error in here is no expected failure."""
    try:
        yield
    except (AssertionError, OSError) as error:
        failure = repr(error)
    else:
        return
    pytest.fail(f"the stage does not work: {failure}")

# SPDX-License-Identifier: Apache-2.0
"""Commands find the maps of an instance by what its agents noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cilia.datapath.mounts import remember_pins
from cilia.program.pins import PINS, pins_in_force


def test_the_last_noted_directory_with_maps_is_in_force(tmp_path: Path) -> None:
    for name in ("old", "now", "gone"):
        remember_pins(tmp_path, tmp_path / name)
    assert pins_in_force(tmp_path) is None
    for name in ("old", "now"):
        (tmp_path / name / "maps").mkdir(parents=True)
    assert pins_in_force(tmp_path) == tmp_path / "now"


@pytest.mark.parametrize("content", ["", "{", "5", "[5]", '{"a": 1}', json.dumps(["\0"])])
def test_a_record_that_nobody_wrote_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / PINS).write_text(content)
    assert pins_in_force(tmp_path) is None
    assert pins_in_force(tmp_path / "none") is None

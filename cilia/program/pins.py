# SPDX-License-Identifier: Apache-2.0
"""Where an instance has its pins, as its agents noted it in the state directory.

`cilia/datapath/mounts.py` writes the record. Here it is read for commands, which have no time to
import what an agent needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from cilia.regular_files import read_regular

__all__ = ["PINS", "pins_in_force"]

PINS: Final = "pins.json"


def pins_in_force(run_dir: Path) -> Path | None:
    """Return the last noted directory that holds maps; None if there is none to be seen."""
    try:
        noted = json.loads(read_regular(run_dir / PINS))
    except (OSError, ValueError):
        return None
    paths = [Path(text) for text in noted if isinstance(text, str)] if type(noted) is list else []
    return next((path for path in reversed(paths) if _holds_maps(path)), None)


def _holds_maps(path: Path) -> bool:
    try:
        return (path / "maps").is_dir()
    except OSError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""How patient tests are: all time-outs are multiplied on a machine that is busy, or emulated."""

from __future__ import annotations

import os
from typing import Final

PATIENCE: Final = float(os.environ.get("CILIA_TEST_PATIENCE", "1"))

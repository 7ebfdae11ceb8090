# SPDX-License-Identifier: Apache-2.0
"""A process that answers each line of JSON with one. It says "ready" first, and ends with its
input.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class JsonProcess:
    def __init__(self, command: Sequence[str], root: Path) -> None:
        """`root`: the checkout whose modules it imports."""
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        assert json.loads(self._output.readline()) == "ready"

    def call(self, message: dict[str, Any]) -> Any:
        self._input.write(json.dumps(message) + "\n")
        self._input.flush()
        return json.loads(self._output.readline())

    def close(self) -> None:
        self._input.close()
        self._process.wait(10)
        self._output.close()

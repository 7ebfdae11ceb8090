# SPDX-License-Identifier: Apache-2.0
"""Runs tests on one build for certain: `python -m tests.build_compiled [--interpreted] [pytest
arguments]`, by default those of what is compiled (`DEFAULT`).

Without `--interpreted` the compiled modules are made first, if the ones that are there do not fit
their sources, and a process that would run a source instead ends with an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = [
    "tests/test_compiled_modules.py",
    "tests/statedb",
    "tests/reconcilers",
    "tests/cilia/loadbalancer",
    "tests/test_scripts.py",
]
INTERPRETED = {"CILIA_COMPILED": "0"}
COMPILED = {"CILIA_COMPILED": "1"}


def main(arguments: list[str]) -> int:
    """Build if need be, then test; return pytest's exit code."""
    interpreted = arguments[:1] == ["--interpreted"]
    tests = arguments[interpreted:] or DEFAULT
    if not interpreted:
        build()
    return subprocess.run(
        [sys.executable, "-m", "pytest", *tests],
        cwd=ROOT,
        env=os.environ | (INTERPRETED if interpreted else COMPILED),
        check=False,
    ).returncode


def build() -> None:
    """Compile what is stale. Raises: CalledProcessError if it cannot be compiled."""
    subprocess.run([sys.executable, "cffi_build.py", "native"], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

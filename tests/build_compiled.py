# SPDX-License-Identifier: Apache-2.0
"""Runs the test suite on the compiled build: `python -m tests.build_compiled [pytest arguments]`.

Copies what git knows to build/compiled, compiles statedb there in place, and runs pytest there, by
default on what uses statedb most (`DEFAULT`). The checkout itself stays uncompiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "compiled"
DEFAULT = ["tests/statedb", "tests/reconcilers", "tests/test_scripts.py"]
COMPILE = """
from setuptools import Distribution
from statedb.compiled import ext_modules
setup = Distribution({"name": "compiled", "ext_modules": ext_modules()})
build = setup.get_command_obj("build_ext")
build.inplace = 1
build.ensure_finalized()
build.run()
"""


def main(arguments: list[str]) -> int:
    """Build, then test; return pytest's exit code."""
    environment = build()
    tests = arguments or DEFAULT
    return subprocess.run(
        [sys.executable, "-m", "pytest", *tests], cwd=TARGET, env=environment, check=False
    ).returncode


def build() -> dict[str, str]:
    """Copy and compile; return the environment in which the copy is what is imported."""
    copy_tree()
    environment = os.environ | {"PYTHONPATH": str(TARGET)}
    subprocess.run([sys.executable, "-c", COMPILE], cwd=TARGET, env=environment, check=True)
    check = (
        f"import statedb._row as r; assert r.COMPILED and r.__file__.startswith({str(TARGET)!r})"
    )
    subprocess.run([sys.executable, "-c", check], cwd=TARGET, env=environment, check=True)
    return environment


def copy_tree() -> None:
    """Make build/compiled a copy of tracked and new files, keeping what an earlier build left."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    TARGET.mkdir(parents=True, exist_ok=True)
    for stale in TARGET.glob("*"):
        if stale.name != "build":
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    built = [str(path.relative_to(ROOT)) for path in ROOT.glob("bpf/*.so")]
    for name in [*filter(None, listed.split("\0")), *built]:
        source = ROOT / name
        if source.is_file():
            (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, TARGET / name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""An editable install compiles the binding of the headers as they are, and no Python module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT_OF = ("pyproject.toml", "cffi_build.py", "README.md", "LICENSE", "MANIFEST.in", "bpf")
HEADER = Path("bpf/lib/metrics_types.h")
#: The steps that pip asks for, in one process; each is finalized by setuptools in its own way.
INSTALL = """
import os, sys
sys.path.insert(0, os.getcwd())
import cffi_build as backend
backend.get_requires_for_build_editable()
backend.prepare_metadata_for_build_editable("metadata")
backend.build_editable("metadata")
translators = [name for name in sys.modules if name.partition(".")[0] in ("mypy", "mypyc")]
print("translators:", *translators)
"""
SIZE = "from bpf._libbpf import ffi; print(ffi.sizeof('struct metrics_value'))"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the binding is built of."""
    copy = tmp_path_factory.mktemp("editable")
    leave = shutil.ignore_patterns("*.so", "_libbpf.c", "objects", "__pycache__")
    for name in BUILT_OF:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=leave)
        else:
            shutil.copy2(ROOT / name, copy / name)
    (copy / "metadata").mkdir()
    return copy


def run(checkout: Path, code: str) -> str:
    """What Python prints there; the C compiler need not optimise, and refuses what gcc 14 does."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=os.environ | {"CFLAGS": "-O0 -Werror=incompatible-pointer-types"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_nothing_is_translated_when_a_checkout_is_installed(checkout: Path) -> None:
    assert run(checkout, INSTALL).splitlines()[-1] == "translators:"
    assert run(checkout, SIZE) == "16\n"


def test_binding_has_the_layout_of_a_changed_header(checkout: Path) -> None:
    header = checkout / HEADER
    header.write_text(header.read_text().replace("__u64 bytes;", "__u64 bytes, added;"))
    run(checkout, INSTALL)
    assert run(checkout, SIZE) == "24\n"

# SPDX-License-Identifier: Apache-2.0
"""Small BPF programs for tests, compiled once and kept, so that they also run where no clang is."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bpf.compile import (
    SOURCE_DIR,
    compile_source,
    default_cache_dir,
    find_clang,
    with_includes,
)

HEAD = """
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "GPL";
"""

CACHE_DIR = default_cache_dir() / "tests"


@cache
def build(source: str) -> bytes:
    """The ELF of a program text; the usual includes and the licence are given."""
    with _written(source) as path:
        return _kept([with_includes(path).decode()], lambda: compile_source(path, find_clang()))


@cache
def build_changed(name: str, header: str, old: str, new: str) -> bytes:
    """The ELF of one of the project's programs with a text in one of its headers replaced."""
    files = [SOURCE_DIR / f"{name}.bpf.c", *sorted((SOURCE_DIR / "lib").glob("*.h"))]
    texts = [path.read_text() for path in files]
    return _kept([header, old, new, *texts], lambda: _compile_changed(name, header, old, new))


def _kept(parts: list[str], make: Callable[[], bytes]) -> bytes:
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = CACHE_DIR / f"{digest[:32]}.o"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make())
    return path.read_bytes()


@contextmanager
def _written(source: str) -> Iterator[Path]:
    """The text as a file beside the project's headers."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "lib").symlink_to(SOURCE_DIR / "lib")
        path = Path(directory) / "test.bpf.c"
        path.write_text(HEAD + source)
        yield path


def _compile_changed(name: str, header: str, old: str, new: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        sources = Path(directory)
        shutil.copytree(SOURCE_DIR / "lib", sources / "lib")
        shutil.copy(SOURCE_DIR / f"{name}.bpf.c", sources)
        changed = sources / "lib" / header
        assert old in changed.read_text()
        changed.write_text(changed.read_text().replace(old, new))
        return compile_source(sources / f"{name}.bpf.c", find_clang())

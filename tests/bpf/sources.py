# SPDX-License-Identifier: Apache-2.0
"""Small BPF programs for tests, compiled once and kept, so that they also run where no clang is."""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path

from bpf.compile import SOURCE_DIR, compile_source, default_cache_dir, find_clang

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
    headers = [path.read_text() for path in sorted((SOURCE_DIR / "lib").glob("*.h"))]
    digest = hashlib.sha256("\0".join([HEAD, source, *headers]).encode()).hexdigest()
    kept = CACHE_DIR / f"{digest[:32]}.o"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(_compile(source))
    return kept.read_bytes()


def _compile(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "lib").symlink_to(SOURCE_DIR / "lib")
        path = Path(directory) / "test.bpf.c"
        path.write_text(HEAD + source)
        return compile_source(path, find_clang())

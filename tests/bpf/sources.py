# SPDX-License-Identifier: Apache-2.0
"""Small BPF programs for tests, compiled once a run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from bpf.compile import SOURCE_DIR, compile_source, find_clang

HEAD = """
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "GPL";
"""


@cache
def build(source: str) -> bytes:
    """The ELF of a program text; the usual includes and the licence are given."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "lib").symlink_to(SOURCE_DIR / "lib")
        path = Path(directory) / "test.bpf.c"
        path.write_text(HEAD + source)
        return compile_source(path, find_clang())

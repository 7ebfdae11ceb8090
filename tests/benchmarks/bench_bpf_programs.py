# SPDX-License-Identifier: Apache-2.0
"""Instructions and verification time of every BPF program, with the change since the last commit.

The other side is compiled from the commit before what is in the tree: HEAD if ``bpf`` has changes,
else the commit that changed it before the last one. Both are loaded in turns.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bpf import compile as bpf_compile
from bpf.object import Object
from tests.benchmarks.report import Report, alternated

ROOT = Path(__file__).resolve().parents[2]


class Size(NamedTuple):
    """What one program costs."""

    verified: int
    translated_bytes: int
    jited_bytes: int


def run(*, peers: bool) -> None:
    report = Report("BPF programs; peer: the same program of the commit before")
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    with tempfile.TemporaryDirectory() as directory:
        before = _sources_before(Path(directory))
        for name in bpf_compile.sources():
            _rows(report, name, before)


def _rows(report: Report, name: str, before: Path | None) -> None:
    ours = bpf_compile.load_object(name)
    theirs = None
    if before is not None and (before / f"{name}.bpf.c").exists():
        theirs = bpf_compile.compile_source(before / f"{name}.bpf.c", bpf_compile.find_clang())
    old = _sizes(name, theirs) if theirs else {}
    for program, size in sorted(_sizes(name, ours).items()):
        peer = old.get(program)
        for field in Size._fields:
            report.row(
                f"{name}.{program}.{field}",
                getattr(size, field),
                "instructions" if field == "verified" else "bytes",
                peer=getattr(peer, field) if peer else None,
                higher_is_better=False,
            )
    sides = [lambda: _load_ms(name, ours), lambda: _load_ms(name, theirs or ours)]
    mine, other = alternated(sides, 5)
    report.row(f"{name}.load", mine, "ms", peer=other if theirs else None, higher_is_better=False)


def _sizes(name: str, elf: bytes) -> dict[str, Size]:
    with Object.open(name, elf) as obj:
        obj.load()
        infos = [program.info() for program in obj.programs()]
    return {
        info.name: Size(
            info.verified_instructions, info.translated_size_bytes, info.jited_size_bytes
        )
        for info in infos
    }


def _load_ms(name: str, elf: bytes) -> float:
    """Maps and verification of all programs of an object."""
    with Object.open(name, elf) as obj:
        start = time.perf_counter()
        obj.load()
        return (time.perf_counter() - start) * 1000


def _sources_before(directory: Path) -> Path | None:
    """``bpf`` as it was, unpacked; None where there is no such commit."""
    changed = _git("status", "--porcelain", "--", "bpf").strip()
    commits = _git("log", "-2", "--format=%H", "--", "bpf/*.bpf.c", "bpf/lib").split()
    commit = "HEAD" if changed else (commits[1] if len(commits) > 1 else None)
    if commit is None:
        return None
    archive = subprocess.check_output(["git", "archive", commit, "bpf"], cwd=ROOT)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return directory / "bpf"


def _git(*args: str) -> str:
    return subprocess.check_output(["git", *args], cwd=ROOT, text=True)

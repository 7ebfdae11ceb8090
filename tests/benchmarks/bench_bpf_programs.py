# SPDX-License-Identifier: Apache-2.0
"""Instructions and verification time of every BPF program, with the change since the last commit.

The other side is compiled from the commit before what is in the tree: HEAD if ``bpf`` has changes,
else the commit that changed it before the last one. Both are loaded in turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bpf import compile as bpf_compile
from bpf.link import AttachType, Link
from bpf.object import Object
from cilia.linux.netns import NetNS
from tests.benchmarks.report import Report, alternated
from tests.bpf.sources import build
from tests.bpf.test_lb_lookup import LOOK_UP

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = 1  # the index of lo in every namespace


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
    one, both = _endpoint_ms()
    report.row(
        "endpoint.load_attach", both, "ms, cached object, both hooks", higher_is_better=False
    )
    report.row("endpoint.attach_one_hook", one, "ms of it", higher_is_better=False)


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


def _endpoint_ms() -> tuple[float, float]:
    """A service look-up program from its compiled object to both hooks of a device: medians.

    The attachment of one hook, and all of it: open, maps, verification, two attachments.
    """
    elf = build(LOOK_UP)
    attachments, wholes, links = list[float](), list[float](), list[Link]()
    with NetNS.new() as netns:
        for _ in range(9):
            start = time.perf_counter()
            with Object.open("look_up", elf) as obj:
                obj.load()
                program = obj.programs()[0]
            for hook in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS):
                attached = time.perf_counter()
                link = netns.run(partial(Link.create, program, LOOPBACK, hook))
                attachments.append((time.perf_counter() - attached) * 1000)
                links.append(link)
            wholes.append((time.perf_counter() - start) * 1000)
            for link in links:
                link.close()
            links.clear()
            program.close()
    return statistics.median(attachments), statistics.median(wholes)


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

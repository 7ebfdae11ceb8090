# SPDX-License-Identifier: Apache-2.0
"""Entries a second into, out of and from a BPF hash: one batch against one call an entry.

With peers, also bpftool's batch file, which makes one call an entry from C.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bpf.features import mount_bpffs
from bpf.maps.map import Map
from bpf.maps.types import MapFlag, MapType
from tests.benchmarks.report import Report, alternated
from tests.bpf.world import unmount

ENTRIES = 100_000
KEYS = [n.to_bytes(12, "big") for n in range(ENTRIES)]
VALUES = [n.to_bytes(28, "big") for n in range(ENTRIES)]


def run(*, peers: bool) -> None:
    report = Report(f"BPF hash, {ENTRIES} entries of 12 + 28 bytes; peer: one call an entry")
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    flags = MapFlag.NO_PREALLOC
    with Map.create(MapType.HASH, "bench", 12, 28, ENTRIES, flags=flags) as target:
        _row(report, "bpf.update_batch", lambda: _batch(target), lambda: _singly(target))
        _row(report, "bpf.read_batch", lambda: _read(target), lambda: _read_singly(target))
        _row(report, "bpf.delete_batch", lambda: _delete(target), lambda: _delete_singly(target))
        if peers:
            ours, bpftool = alternated([lambda: _batch(target), lambda: _bpftool(target)], 5)
            report.row("bpf.update_batch/bpftool", ours, "entries/s", peer=bpftool)


def _row(report: Report, name: str, ours: Callable[[], float], peer: Callable[[], float]) -> None:
    mine, theirs = alternated([ours, peer], 5)
    report.row(name, mine, "entries/s", peer=theirs)


def _rate(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return ENTRIES / (time.perf_counter() - start)


def _batch(target: Map) -> float:
    target.clear()
    return _rate(lambda: target.update_batch(KEYS, VALUES))


def _singly(target: Map) -> float:
    target.clear()
    return _rate(lambda: _update_each(target))


def _update_each(target: Map) -> None:
    for key, value in zip(KEYS, VALUES, strict=True):
        target.update(key, value)


def _read(target: Map) -> float:
    target.update_batch(KEYS, VALUES)
    return _rate(lambda: sum(1 for _ in target.items()))


def _read_singly(target: Map) -> float:
    target.update_batch(KEYS, VALUES)
    return _rate(lambda: list(map(target.lookup, target.keys())))


def _delete(target: Map) -> float:
    target.update_batch(KEYS, VALUES)
    return _rate(lambda: target.delete_batch(KEYS))


def _delete_singly(target: Map) -> float:
    target.update_batch(KEYS, VALUES)
    return _rate(lambda: _delete_each(target))


def _delete_each(target: Map) -> None:
    for key in KEYS:
        target.delete(key)


def _bpftool(target: Map) -> float:
    """bpftool reads a file of commands; writing that file is not counted."""
    target.clear()
    with tempfile.TemporaryDirectory() as directory:
        bpffs, commands = Path(directory) / "bpffs", Path(directory) / "commands"
        mount_bpffs(bpffs)
        try:
            target.pin(bpffs / "bench")
            commands.write_text(_commands(bpffs / "bench"))
            command = ["bpftool", "batch", "file", str(commands)]
            return _rate(lambda: subprocess.run(command, check=True, capture_output=True))
        finally:
            unmount(bpffs)


def _commands(pin: Path) -> str:
    return "".join(
        f"map update pinned {pin} key hex {key.hex(' ')} value hex {value.hex(' ')}\n"
        for key, value in zip(KEYS, VALUES, strict=True)
    )

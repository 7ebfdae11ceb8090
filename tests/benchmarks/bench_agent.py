# SPDX-License-Identifier: Apache-2.0
"""10,000 Services in the directory: start to all reconciled, memory, idle CPU, and save to map."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from ipaddress import IPv4Address
from pathlib import Path

from tests.benchmarks.report import Report
from tests.e2e.manifests import served
from tests.e2e.world import World, world

SERVICES = 10_000
FILES = 100
CHANGES = 20
IDLE_S = 5.0


def service_address(number: int) -> str:
    return str(IPv4Address("10.203.0.0") + number + 1)


def backend_address(number: int, generation: int = 0) -> str:
    return str(IPv4Address("10.204.0.0") + number + 1 + generation * 20_000)


def documents(numbers: range) -> str:
    return "---\n".join(served(f"s{n}", service_address(n), [backend_address(n)]) for n in numbers)


def run(*, peers: bool) -> None:
    del peers  # there is none that reads manifests
    if os.geteuid() != 0:
        print("bench agent: needs root (real maps), not run")
        return
    report = Report(f"agent: {SERVICES} Services and EndpointSlices in a directory")
    with tempfile.TemporaryDirectory() as directory, world(Path(directory), "bench") as w:
        per_file = SERVICES // FILES
        for number in range(FILES):
            w.write(
                f"{number:03}.yaml", documents(range(number * per_file, (number + 1) * per_file))
            )
        report.row("agent.start_10k", _start_s(w), "s to all reconciled", higher_is_better=False)
        report.row("agent.rss_10k", _rss_mb(w), "MB resident", higher_is_better=False)
        report.row("agent.idle", _idle_share(w), "% of a core", higher_is_better=False)
        latencies = sorted(_save_to_map_ms(w, n) for n in range(CHANGES))
        report.row(
            "agent.save_to_map_p50", statistics.median(latencies), "ms", higher_is_better=False
        )
        report.row("agent.save_to_map_max", latencies[-1], "ms", higher_is_better=False)
        report.row("agent.cli_status", _command_ms(w, "status"), "ms", higher_is_better=False)
        report.row(
            "agent.cli_db_show",
            _command_ms(w, "db", "show", "services"),
            "ms (10k rows)",
            higher_is_better=False,
        )
        restarted = _restart_s(w)
        report.row("agent.restart_10k", restarted, "s to all reconciled", higher_is_better=False)


def _start_s(w: World) -> float:
    started = time.monotonic()
    w.start_agent()
    w.eventually(w.ready, 120)
    return time.monotonic() - started


def _restart_s(w: World) -> float:
    w.kill_agent()
    return _start_s(w)


def _command_ms(w: World, *words: str) -> float:
    """Wall time of a command, start of Python included; median of seven."""
    samples = []
    for _ in range(7):
        started = time.monotonic()
        w.cilia(*words)
        samples.append((time.monotonic() - started) * 1000)
    return statistics.median(samples)


def _rss_mb(w: World) -> float:
    status = Path(f"/proc/{w.agents[-1].pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _idle_share(w: World) -> float:
    def ticks() -> int:
        fields = Path(f"/proc/{w.agents[-1].pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(IDLE_S)  # the length of the measurement
    return 100 * (ticks() - before) / os.sysconf("SC_CLK_TCK") / IDLE_S


def _save_to_map_ms(w: World, number: int) -> float:
    """From the rename of one small file to the service's slot pointing to the new backend."""
    from bpf.maps.lb import (
        LBMaps,
        decode_backend,
        decode_service,
        encode_id,
        encode_service_key,
    )

    maps = LBMaps.open_pinned(w.bpf_root / w.namespace / "maps").v4
    key = encode_service_key(IPv4Address("10.203.250.1").packed, 80, slot=1, proto=6)
    wanted = IPv4Address(backend_address(number, 1))
    w.write("change.yaml", served("change", "10.203.250.1", [str(wanted)]))
    started = time.monotonic()
    while True:
        slot = maps.service.lookup(key)
        if slot is not None:
            backend = maps.backend.lookup(encode_id(decode_service(slot).backend_id))
            if backend is not None and decode_backend(backend).address == wanted.packed:
                return (time.monotonic() - started) * 1000
        if time.monotonic() - started > 10:
            raise AssertionError("the change did not reach the map in 10 s")

# SPDX-License-Identifier: Apache-2.0
"""50,000 Services and EndpointSlices to the load-balancer maps and back, beside the original in Go.

Every figure is of a process of its own (`services_side`, `peers/loadbalancer`), so that none
inherits a heap; the sides run in turns. As root also over BPF maps.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable

from tests.benchmarks.report import Report
from tests.build_compiled import COMPILED, INTERPRETED, ROOT, build

PEER_SOURCE = ROOT / "tests/benchmarks/peers/loadbalancer"
PEER = ROOT / "build/peers/loadbalancer"
SERVICES = 50_000
ROUNDS = 5

UNITS = {
    "insert_cpu": "services/CPU s",
    "delete_cpu": "services/CPU s",
    "memory": "bytes a service",
}

Figures = dict[str, float]


def ours(environment: dict[str, str], *options: str) -> Figures:
    line = [sys.executable, "-m", "tests.benchmarks.services_side", f"--services={SERVICES}"]
    found: Figures = json.loads(_output([*line, *options], environment))
    return {
        "insert": SERVICES / found["insert_s"],
        "insert_cpu": SERVICES / found["insert_cpu_s"],
        "delete": SERVICES / found["delete_s"],
        "delete_cpu": SERVICES / found["delete_cpu_s"],
        "memory": found["bytes"] / SERVICES,
    }


def peer(environment: dict[str, str]) -> Figures:
    """The averages, which of one iteration are the figures."""
    text = _output([str(PEER), f"-services={SERVICES}"], environment)
    rates = [float(rate) for rate in re.findall(r"Avg: Reconciled .* (\d+) services per", text)]
    in_use = re.search(r"Avg: Allocated .* (\d+)B in-use", text)
    assert in_use is not None and len(rates) == 2, text
    return {"insert": rates[0], "delete": rates[1], "memory": float(in_use[1])}


def _output(line: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        line,
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def medians(sides: dict[str, Callable[[], Figures]]) -> dict[str, Figures]:
    """The median of each figure of each side, all sides in turns."""
    samples: dict[str, list[Figures]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, once in sides.items():
            samples[name].append(once())
    return {
        name: {what: statistics.median(one[what] for one in kept) for what in kept[0]}
        for name, kept in samples.items()
    }


def run(*, peers: bool) -> None:
    build()
    sides: dict[str, Callable[[], Figures]] = {
        "": lambda: ours(COMPILED),
        ".pure": lambda: ours(INTERPRETED),
    }
    if os.geteuid() == 0:
        sides[".bpf"] = lambda: ours(COMPILED, "--kernel")
    theirs: dict[str, Callable[[], Figures]] = {}
    if peers:
        PEER.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["go", "build", "-o", str(PEER), "."], cwd=PEER_SOURCE, check=True)
        theirs["peer"] = lambda: peer({})
        if ".bpf" in sides:
            theirs["peer.bpf"] = lambda: peer({"PRIVILEGED_TESTS": "true"})
    report = Report(
        f"services to maps: {SERVICES} Services and EndpointSlices, maps in memory, compiled; pure "
        "Python; BPF maps, compiled; peer: github.com/cilium/cilium v1.19.0"
    )
    found = medians(sides | theirs)
    for name in sides:
        other = found.get("peer.bpf" if name == ".bpf" else "peer", {})
        for what, value in found[name].items():
            report.row(
                f"services.{what}{name}",
                value,
                UNITS.get(what, "services/s"),
                peer=other.get(what),
                higher_is_better=what != "memory",
            )

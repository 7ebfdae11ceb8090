# SPDX-License-Identifier: Apache-2.0
"""One stretch of churn around a real agent; 1 if something in it grew.

    python -m tests.soak.agent.churn --source=files --minutes=10 [--leak=snapshot]

The agent is a process on real maps in the namespace of a node, with pods, another node and clients
around it (`tests/e2e/nodes.py`). `--source=api`: its objects are those of a real API server over
etcd. While all of `busy.py` goes on, its memory, descriptors, threads, metrics and maps are
sampled; in the end all objects go, and the agent and the kernel must have what they had before.
Needs root.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.report import machine
from tests.e2e.passes import LOCAL, REMOTE, Asked, asked_world, backends
from tests.kube.apiserver import ApiServer
from tests.soak.agent import inside
from tests.soak.agent.busy import Clients, Commands, Network, Watches, Writer, busy
from tests.soak.agent.inside import LEAKS, NONE
from tests.soak.agent.objects import NAMESPACE, Form
from tests.soak.agent.samples import Sample, Sampler
from tests.soak.agent.stores import Files, Served, Store
from tests.soak.agent.verdict import Finding, course, verdict

SOURCES = ("files", "api")
#: Part of a stretch before the first sample.
WARM_UP = 0.25
SAMPLE_S = 2.0
#: Of the questions of clients: a datagram may get lost.
ALLOWED_FAILURES = 0.002
#: What an agent does now and then it does often here, and what it keeps for hours it has filled
#: when the samples begin.
OPTIONS = (
    "--metrics-sampling-interval=1s",
    "--k8s-watch-proof-interval=10s",
    "--k8s-client-qps=100",
    "--lb-verify-interval-s=10",
    "--conntrack-gc-interval=2s",
    "--bpf-ct-timeout-regular-any=5s",
    "--bpf-ct-timeout-service-any=5s",
    "--bpf-ct-timeout-regular-tcp-fin=2s",
    "--bpf-ct-timeout-service-tcp-grace=2s",
    "--enable-local-redirect-policy",
    "--devices=eth0,churn+",
)
#: Tables that tell of what was: all others have what they had when the objects that came are gone.
OF_THE_PAST = ("health", "convergence", "drift", "neighbors")


class Stretch:
    """The agent, everybody around it, and where its objects are."""

    def __init__(self, w: Asked, store: Store, seed: int) -> None:
        self.w, self.store = w, store
        rngs = [random.Random(seed + number) for number in range(5)]
        self.writer = Writer(store, rngs[0])
        self.network = Network(w.nodes.node[1], rngs[1])
        self.clients = Clients(w, rngs[2])
        self.commands = Commands(w, rngs[3])
        self.watches = Watches(str(w.state_dir / "cilia.sock"), rngs[4])
        self.steps: dict[str, int] = {}
        self.holders: set[str] = set()

    def start(self, leak: str) -> None:
        """Run an agent until it has the fixed objects in force."""
        self.store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.w.source = list(self.store.source)
        self.w.program = [sys.executable, "-m", inside.__name__, leak]
        self.w.start_agent(*OPTIONS)
        self.w.eventually(self.w.ready, 120)
        # Addresses that the kernel still looks for elsewhere have no routes yet.
        node = self.w.nodes.node[1]
        self.w.eventually(lambda: not node.ip("-6 addr show tentative"))

    def run(self, minutes: float) -> tuple[list[Sample], list[Finding]]:
        """Churn for so long; the samples after the warm-up, and what the end has to say."""
        agent = self.w.agents[-1]
        maps = self.w.bpf_root / self.w.namespace / "maps"
        sampler = Sampler(agent.pid, self.w.state_dir / "cilia.sock", maps)
        first, before = sampler.take(), self._rows()
        samples = []
        with busy(self._busy()) as threads:
            end = time.monotonic() + minutes * 60
            begin = time.monotonic() + WARM_UP * minutes * 60
            while (now := time.monotonic()) < end:
                sample = sampler.take()
                if now > begin:
                    samples.append(sample)
                for thread in threads.values():
                    thread.check()
                self.store.tend()
                time.sleep(SAMPLE_S)
        self.steps = {name: thread.steps for name, thread in threads.items()}
        self.holders = sampler.holders
        return samples, [*self._emptied(before, first, sampler), self._served()]

    def _busy(self) -> dict[str, Callable[[], None]]:
        return {
            "objects": self.writer.step,
            "network": self.network.step,
            "clients": self.clients.step,
            "commands": self.commands.step,
            "watches": self.watches.step,
        }

    def _emptied(self, before: dict[str, int], first: Sample, sampler: Sampler) -> list[Finding]:
        """Take all objects away, and compare with what there was before they came."""
        self.writer.clear()
        self.network.clear()
        self.clients.close()
        self.watches.close()
        left: dict[str, Any] = {}

        def is_empty() -> bool:
            rows = self._rows()
            left.clear()
            left.update({name: n for name, n in rows.items() if n != before[name]})
            if (services := sampler.take().services) != first.services:
                left["entries"] = services
            return not left

        try:
            self.w.eventually(is_empty, 60)
        except AssertionError:
            text = ", ".join(f"{name} {count}" for name, count in left.items())
            return [Finding("left at the end", text, False)]
        return [Finding("left at the end", "what there was before", True)]

    def _rows(self) -> dict[str, int]:
        tables = self.w.get("/status")["tables"]
        return {row["name"]: row["objects"] for row in tables if row["name"] not in OF_THE_PAST}

    def _served(self) -> Finding:
        failed, answers = self.clients.failures.total(), self.clients.answers
        text = f"{failed} of {failed + answers}"
        examples = [f"{what} ({n})" for what, n in self.clients.failures.most_common(3)]
        good = failed <= ALLOWED_FAILURES * (failed + answers)
        return Finding("questions that failed", "; ".join([text, *examples]), good)

    def report(self) -> list[str]:
        """What was done meanwhile."""
        return [
            *(f"{name:<12} {count} steps" for name, count in self.steps.items()),
            f"refused by the source {self.store.refused}; lines of watches {self.watches.lines},"
            f" their ends {dict(self.watches.ended)}",
            *(f"held a snapshot: {place}" for place in sorted(self.holders)),
            "exit codes: "
            + ", ".join(f"{k} ({n})" for k, n in sorted(self.commands.codes.items())),
        ]


@contextmanager
def stretch(source: str, directory: Path, seed: int) -> Iterator[Stretch]:
    """Everything but the agent. From here on this thread, and what it starts, is in the node."""
    with ExitStack() as stack:
        w = stack.enter_context(asked_world(directory, "soak"))
        w.nodes.node[1].netns.enter()
        if source == "files":
            yield Stretch(w, Files(w.manifests), seed)
            return
        server = stack.enter_context(ApiServer(directory, Served.settings()))
        store = Served(server)
        for form in _fixed():
            store.put(form)
        yield Stretch(w, store, seed)


def _fixed() -> Iterator[Form]:
    """The Services that clients ask for."""
    for service, node in ((LOCAL, 1), (REMOTE, 2)):
        yield from yaml.safe_load_all(service.manifest(backends(node)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=SOURCES, default="files")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--leak", choices=[NONE, *sorted(LEAKS)], default=NONE)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and clean up
    seed = random.randrange(1 << 32)
    with (
        tempfile.TemporaryDirectory() as directory,
        stretch(given.source, Path(directory), seed) as made,
    ):
        made.start(given.leak)
        samples, ends = made.run(given.minutes)
        findings = [*verdict(samples), *ends]
    print(f"{machine()}, seed {seed}; an agent with {given.source}, {given.minutes:g} minutes,")
    print(f"{len(samples)} samples from second {samples[0].second:.0f} on")
    print("\n".join([*made.report(), f"MiB: {course(samples)}", *map(str, findings)]), flush=True)
    return 0 if all(finding.good for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())

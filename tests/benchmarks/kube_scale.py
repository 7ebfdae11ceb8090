# SPDX-License-Identifier: Apache-2.0
"""An agent and a large cluster: start, memory, CPU, and the time from a write to the maps.

    python -m tests.benchmarks.kube_scale [--scale 0.1]

A real API server holds 10,000 Services, 20,000 EndpointSlices, 5,000 Nodes and 50,000 Pods (ten on
this node). They are written into etcd directly, 100 in a transaction: making them through
the API takes minutes and shows nothing. The agent is `cilia agent` as a process of its own, on
kernel maps, in a network namespace without a way out, in which everything else runs too. Then
EndpointSlices change through the API, 100 a second, each with the writer's clock as its trigger
time; in the end the agent starts again on what its predecessor left. Beside it: what reading the
same objects costs here and with the plain `kubernetes` client. Needs root.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import structlog

from cilia.linux.netns import NetNS
from tests.benchmarks.kube_proto import stored
from tests.e2e.world import World, world
from tests.kube import apiserver
from tests.kube.apiserver import ApiServer

NODE: Final = "testnode"
OPS: Final = 100
# Of the map of services: a master, six backends and a wildcard each.
MAP_ENTRIES: Final = 262_144
SYNCHRONISED: Final = '"event": "synchronised"'
# An API server that uses less than this share of a core has taken in what was written behind it.
RESTING: Final = 0.15
NAMESPACES: Final = 20
TRIGGER: Final = "endpoints.kubernetes.io/last-change-trigger-time"
STAMP: Final = "2026-01-01T00:00:00Z"

Form = dict[str, Any]


class Size(msgspec.Struct, frozen=True):
    services: int
    slices: int
    nodes: int
    pods: int

    @property
    def total(self) -> int:
        return self.services + self.slices + self.nodes + self.pods


# -- objects, as large as real ones are


def meta(name: str, namespace: str = "", **more: Any) -> Form:
    fields = {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:ports": {}}}
    managed = {
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": "v1",
        "time": STAMP,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    where = {"namespace": namespace} if namespace else {}
    uid = f"00000000-0000-4000-8000-{abs(hash((name, namespace))) % 16**12:012x}"
    return {
        "name": name,
        **where,
        "uid": uid,
        "creationTimestamp": STAMP,
        "labels": {"app": name},
        "managedFields": [managed],
        **more,
    }


def ip(first: int, number: int) -> str:
    return f"{first}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def service(i: int) -> Form:
    spec = {
        "type": "ClusterIP",
        "clusterIP": ip(10, (100 << 16) + i),
        "clusterIPs": [ip(10, (100 << 16) + i)],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "internalTrafficPolicy": "Cluster",
        "sessionAffinity": "None",
        "selector": {"app": f"svc-{i}"},
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
    }
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": meta(f"svc-{i}", f"ns-{i % NAMESPACES}"),
        "spec": spec,
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(i: int, services: int, change: int = 0) -> Form:
    svc = i % services
    labels = {"kubernetes.io/service-name": f"svc-{svc}", "app": f"svc-{svc}"}
    endpoints = [
        {
            "addresses": [ip(11, (i * 8 + k + change * 4) & 0xFFFFFF)],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node-{(i + k) % 100}",
            "targetRef": {"kind": "Pod", "namespace": "ns", "name": f"pod-{i}-{k}"},
        }
        for k in range(3)
    ]
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": meta(f"svc-{svc}-{i}", f"ns-{svc % NAMESPACES}", labels=labels),
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }


def node(i: int) -> Form:
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": meta(f"node-{i}"),
        "spec": {"podCIDR": f"10.{i >> 8}.{i & 255}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": ip(192, (168 << 16) + i)}]},
    }


def pod(i: int, pods: int) -> Form:
    mine = i < 10
    spec = {
        "nodeName": NODE if mine else f"node-{i % 5000}",
        "containers": [{"name": "main", "image": "example.org/none"}],
    }
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": meta(f"pod-{i}", f"ns-{i % NAMESPACES}"),
        "spec": spec,
        "status": {"phase": "Running", "podIP": ip(12, i)},
    }


def entries(size: Size) -> Iterator[tuple[str, Form]]:
    """etcd keys and values."""
    for i in range(NAMESPACES):
        form = {"kind": "Namespace", "apiVersion": "v1", "metadata": meta(f"ns-{i}")}
        yield f"namespaces/ns-{i}", form
    for i in range(size.services):
        form = service(i)
        yield f"services/specs/{path_of(form)}", form
    for i in range(size.slices):
        form = endpoint_slice(i, size.services)
        yield f"endpointslices/{path_of(form)}", form
    for i in range(size.nodes):
        yield f"minions/node-{i}", node(i)
    for i in range(size.pods):
        form = pod(i, size.pods)
        yield f"pods/{path_of(form)}", form


def path_of(form: Form) -> str:
    return f"{form['metadata']['namespace']}/{form['metadata']['name']}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def fill(server: ApiServer, size: Size) -> None:
    """By etcd's JSON gateway, many objects in a transaction."""
    connection = _UnixConnection(server.memory / apiserver.CLIENTS)
    batch: list[Form] = []

    def flush() -> None:
        body = json.dumps({"success": [{"requestPut": put} for put in batch]})
        connection.request("POST", "/v3/kv/txn", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"etcd: {answer.status} {text!r}")
        batch.clear()

    for key, form in entries(size):
        batch.append({"key": _b64(f"/registry/{key}".encode()), "value": _b64(stored(form))})
        if len(batch) == OPS:
            flush()
    if batch:
        flush()
    connection.close()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- the processes that are measured; each prints one line of JSON


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def used() -> Form:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_mib": rss_mib(),
        "peak_mib": usage.ru_maxrss / 1024,
    }


async def source_child(kubeconfig: Path) -> None:
    """Reads Services and EndpointSlices as the agent does, and keeps nothing but versions."""
    from cilia.k8s.objects import EndpointSlice, Service
    from cilia.k8s.watch import Listed, Upsert
    from tests.kube.agents import api_source, config_for

    source = api_source(config_for(kubeconfig))
    for kind in ("Pod", "Node", "Namespace"):
        del source.watches[kind]
    start = used()
    task = asyncio.create_task(source.run())
    objects, listed = 0, 0
    async for events in source.watch(Service, EndpointSlice):
        objects += sum(isinstance(event, Upsert) for event in events)
        listed += sum(isinstance(event, Listed) for event in events)
        if listed == 2:
            break
    _tell(start, objects)
    task.cancel()


def plain_child(kubeconfig: Path) -> None:
    """The same with the package's own lists in pages; the objects are kept, as an informer does."""
    import kubernetes

    kubernetes.config.load_kube_config(str(kubeconfig))
    core, discovery = kubernetes.client.CoreV1Api(), kubernetes.client.DiscoveryV1Api()
    start = used()
    kept: list[Any] = []
    for read in (
        core.list_service_for_all_namespaces,
        discovery.list_endpoint_slice_for_all_namespaces,
    ):
        token = None
        while True:
            page = read(limit=1000, **({"_continue": token} if token else {}))
            kept += page.items
            token = page.metadata._continue
            if not token:
                break
    _tell(start, len(kept))


def _tell(start: Form, objects: int) -> None:
    end = used()
    print(
        json.dumps(
            {
                "objects": objects,
                "cpu_us": (end["cpu_s"] - start["cpu_s"]) / objects * 1e6,
                "kib": (end["rss_mib"] - start["rss_mib"]) / objects * 1024,
                "peak_kib": (end["peak_mib"] - start["rss_mib"]) / objects * 1024,
            }
        ),
        flush=True,
    )


# -- the measurement


def child(mode: str, kubeconfig: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        __spec__.name,
        "--child",
        mode,
        "--kubeconfig",
        str(kubeconfig),
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> Form:
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        raise RuntimeError(f"the measured process ended: {process.wait()}")
    answer: Form = json.loads(text)
    return answer


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


async def change(server: ApiServer, size: Size, seconds: float, rate: float) -> int:
    """Changes one EndpointSlice after the other through the API at a fixed rate."""
    from cilia.k8s.access import Access
    from cilia.k8s.api_servers import Servers, parse_server
    from cilia.k8s.client import Limits
    from cilia.k8s.writing import WritingClient

    servers = Servers([parse_server(server.url)])
    limits = Limits(qps=1e6, burst=10**6)
    started = time.monotonic()
    count = min(int(seconds * rate), size.slices)

    async def one(client: WritingClient, i: int) -> None:
        await asyncio.sleep(max(0.0, started + i / rate - time.monotonic()))
        form = endpoint_slice(i, size.services, change=1)
        base = "/apis/discovery.k8s.io/v1/namespaces"
        path = f"{base}/{form['metadata']['namespace']}/endpointslices/{form['metadata']['name']}"
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        body = {"metadata": {"annotations": {TRIGGER: now}}, "endpoints": form["endpoints"]}
        await client.merge(path, body)

    async with WritingClient(Access(server.kubeconfig), servers, limits) as client:
        await asyncio.gather(*(one(client, i) for i in range(count)))
    return count


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(server: ApiServer, size: Size) -> float:
    """Waits until the API server knows all objects and is at rest; seconds."""
    began = time.monotonic()
    for path, count in (
        ("/api/v1/services", size.services),
        ("/apis/discovery.k8s.io/v1/endpointslices", size.slices),
        ("/api/v1/nodes", size.nodes),
        ("/api/v1/pods", size.pods),
    ):
        left = server.get(f"{path}?limit=1")["metadata"].get("remainingItemCount", 0)
        if left < count - 1:
            raise RuntimeError(f"{path}: {left + 1} objects, not {count}")
    while True:
        before = cpu_s(server.server.pid)
        time.sleep(1)
        if cpu_s(server.server.pid) - before < RESTING:
            return time.monotonic() - began


class Measured:
    """The agent's process, seen from outside."""

    def __init__(self, w: World) -> None:
        self.w = w

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.w.agents[-1].pid)

    def mib(self, field: str) -> float:
        text = Path(f"/proc/{self.w.agents[-1].pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024

    def start(self, kubeconfig: Path) -> float:
        """Seconds until all that is in the API server is in the maps."""
        log = self.w.directory / "agent.log"
        said = log.read_text().count(SYNCHRONISED) if log.exists() else 0
        self.w.source = [f"--k8s-kubeconfig-path={kubeconfig}", f"--node-name={NODE}"]
        started = time.monotonic()
        process = self.w.start_agent(f"--bpf-lb-map-max={MAP_ENTRIES}")
        while log.read_text().count(SYNCHRONISED) == said:  # to ask the agent costs it time
            if process.poll() is not None or time.monotonic() - started > 300:
                raise RuntimeError(log.read_text()[-3000:])
            time.sleep(0.02)
        return time.monotonic() - started

    def rows(self, table: str) -> list[Form]:
        text, rows, end = self.w.cilia("db", "show", table, "-o", "json").stdout.rstrip(), [], 0
        decoder = json.JSONDecoder()
        while end < len(text):
            row, end = decoder.raw_decode(text, end)
            rows.append(row)
            while end < len(text) and text[end].isspace():
                end += 1
        return rows


def measure_start(agent: Measured, server: ApiServer, what: str) -> None:
    programs = (server.server.pid, server.etcd.pid)
    before = [cpu_s(pid) for pid in programs]
    took_s = agent.start(server.kubeconfig)
    theirs = [cpu_s(pid) - used for pid, used in zip(programs, before, strict=True)]
    watches = agent.rows("k8s-watches")
    print(f"{what:<24}  {took_s:.1f} s")
    print(f"  CPU                     {agent.cpu_s:.1f} s; API server", end="")
    print(f" {theirs[0]:.1f} s, etcd {theirs[1]:.1f} s; load {os.getloadavg()[0]:.1f}")
    print(
        f"  memory                  {agent.mib('VmRSS'):.0f} MiB, peak {agent.mib('VmHWM'):.0f} MiB"
    )
    print(f"  watches                 {len(watches)}:", end="")
    print("", ", ".join(f"{w['Resource']} {w['Objects']}" for w in watches))
    left = [row for row in agent.rows("frontends") if row["Status"]["kind"] != "done"]
    print(f"  frontends not in force  {len(left)} {str(left[:1] or '')[:300]}")


def measure_changes(
    agent: Measured, server: ApiServer, size: Size, seconds: float, rate: float
) -> None:
    cpu_s, began = agent.cpu_s, time.monotonic()
    count = asyncio.run(change(server, size, seconds, rate))
    took_s = time.monotonic() - began
    time.sleep(2)  # the last ones arrive
    used_s, watched_s = agent.cpu_s - cpu_s, time.monotonic() - began
    rows = [row for row in agent.rows("convergence") if row["TimeSource"] == "trigger"]
    total = [moment(row["InMap"]) - moment(row["Changed"]) for row in rows if row["InMap"]]
    api = [moment(row["Received"]) - moment(row["Changed"]) for row in rows]
    print(f"{count} changes in {took_s:.1f} s, of which {len(total)} are in the maps")
    if total:
        print(f"  API -> map p50          {statistics.median(total) * 1000:.1f} ms")
        print(f"  API -> map p99          {percentile(total, 0.99) * 1000:.1f} ms")
        print(f"  of which API p50, p99   {statistics.median(api) * 1000:.1f} ms,", end="")
        print(f" {percentile(api, 0.99) * 1000:.1f} ms")
    print(f"  CPU                     {used_s / watched_s:.2f} cores")
    print(f"  memory                  {agent.mib('VmRSS'):.0f} MiB")


def measure_idle(agent: Measured, seconds: float) -> None:
    """Nothing changes; proofs come once a minute."""
    cpu_s, before = agent.cpu_s, agent.rows("k8s-watches")
    time.sleep(seconds)
    used_s, after = agent.cpu_s - cpu_s, agent.rows("k8s-watches")

    def more(name: str) -> float:
        return float(sum(w[name] for w in after) - sum(w[name] for w in before))

    print(f"idle for {seconds:.0f} s             {used_s / seconds:.3f} cores, in which")
    print(f"  proofs                  {more('Proofs'):.0f} of {len(after)} resources,", end="")
    print(f" {more('ProofBytes') / 2**20:.1f} MiB, {more('ProofCPUSeconds'):.2f} s of CPU")


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def measure_clients(server: ApiServer) -> None:
    print("per object                 CPU        kept       peak")
    for mode, name in (("source", "this source"), ("plain", "kubernetes client")):
        process = child(mode, server.kubeconfig)
        row = line(process)
        process.wait()
        print(
            f"  {name:<22} {row['cpu_us']:>6.0f} us {row['kib']:>6.2f} KiB"
            f" {row['peak_kib']:>6.2f} KiB  ({row['objects']} objects)"
        )


@click.command()
@click.option("--scale", default=1.0, show_default=True, help="Share of the full size.")
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--rate", default=100.0, show_default=True, help="Changes a second.")
@click.option("--child", "mode", default="", hidden=True)
@click.option("--kubeconfig", type=click.Path(path_type=Path), default=None, hidden=True)
def main(scale: float, seconds: float, rate: float, mode: str, kubeconfig: Path | None) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    if kubeconfig is not None:
        if mode == "plain":
            plain_child(kubeconfig)
        else:
            asyncio.run(source_child(kubeconfig))
        return
    size = Size(*(max(1, int(n * scale)) for n in (10_000, 20_000, 5_000, 50_000)))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, ", end="")
    print(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory, world(Path(directory), "scale") as w:
        with NetNS.named(w.namespace) as inside:
            inside.enter()
        with ApiServer(Path(directory)) as server:
            began = time.monotonic()
            fill(server, size)
            print(f"{size.total} objects in etcd in {time.monotonic() - began:.1f} s: {size}")
            print(f"API server at rest after  {settle(server, size):.1f} s")
            agent = Measured(w)
            measure_start(agent, server, "start to synchronised")
            measure_changes(agent, server, size, seconds, rate)
            measure_idle(agent, 65)
            w.kill_agent()
            measure_start(agent, server, "start again")
            w.kill_agent()
            measure_clients(server)


if __name__ == "__main__":
    main()

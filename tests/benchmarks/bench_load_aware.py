# SPDX-License-Identifier: Apache-2.0
"""What the choice by number of connections is good for: backends that are not equally fast.

Servers work off one request at a time. Clients ask again as soon as they are answered, each time on
a new connection to a Service of all servers. The peer is the same with the random choice. Where all
are alike there is little to gain; one slow server is what most clients wait for if nobody looks.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.report import Report

SERVICE, PORT = "10.96.0.1", 80
CLIENTS = 12
SECONDS = 2.0
ROUNDS = 5
FAST_S, SLOW_S = 0.002, 0.020
#: Seconds for a request, by server.
MIXES = {"equal": [FAST_S] * 8, "one_slow": [FAST_S] * 7 + [SLOW_S]}


class Result(NamedTuple):
    requests_s: float
    p50_ms: float
    p99_ms: float


def run(*, peers: bool) -> None:
    report = Report("choice by number of connections; peer: the random choice")
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    for mix, delays in MIXES.items():
        names = ("LEAST_CONNECTIONS", "RANDOM") if peers else ("LEAST_CONNECTIONS",)
        results = _alternated(names, delays)
        peer = results.get("RANDOM")
        ours = results["LEAST_CONNECTIONS"]
        for field, unit in (("requests_s", "requests/s"), ("p50_ms", "ms"), ("p99_ms", "ms")):
            report.row(
                f"load_aware.{mix}.{field}",
                getattr(ours, field),
                unit,
                peer=getattr(peer, field) if peer else None,
                higher_is_better=field == "requests_s",
            )


def _alternated(names: Sequence[str], delays: Sequence[float]) -> dict[str, Result]:
    found: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            found[name].append(_measured(name, delays))
    return {
        name: Result(*(statistics.median(column) for column in zip(*results, strict=True)))
        for name, results in found.items()
    }


def _measured(algorithm: str, delays: Sequence[float]) -> Result:
    """In a process and a network namespace of its own."""
    from bpf.datapath import cleanup
    from bpf.maps.lb_numbers import Algorithm
    from bpf.sock import SockConfig
    from tests.bpf.attaching import AttachingDatapath
    from tests.bpf.world import World

    def inside() -> Result:
        config = SockConfig(bpffs / "bench", cgroup, 256, 4096, algorithm=Algorithm[algorithm])
        sock = AttachingDatapath(config)
        try:
            with ExitStack() as stack:
                maps = sock.open_maps()
                stack.callback(maps.close)
                _fill(maps, [_serve(delay) for delay in delays])
                sock.load()
                sock.attach()
                return _asked()
        finally:
            sock.close()
            cleanup(config.pin_dir)

    with _places() as (bpffs, cgroup):
        return World(bpffs, cgroup).in_child(inside)


def _fill(maps: object, ports: Sequence[int]) -> None:
    from bpf.maps import lb

    assert isinstance(maps, lb.LBMaps)
    local, address = socket.inet_aton("127.0.0.1"), socket.inet_aton(SERVICE)
    for slot, port in enumerate(ports, 1):
        value = lb.encode_backend(lb.BackendValue(local, port, socket.IPPROTO_TCP))
        maps.v4.backend.update(lb.encode_id(slot), value)
        key = lb.encode_service_key(address, PORT, slot, socket.IPPROTO_TCP)
        maps.v4.service.update(key, lb.encode_service(lb.ServiceValue(backend_id=slot)))
    master = lb.ServiceValue(rev_nat=1, count=len(ports))
    key = lb.encode_service_key(address, PORT, 0, socket.IPPROTO_TCP)
    maps.v4.service.update(key, lb.encode_service(master))


def _serve(delay_s: float) -> int:
    """A server with one worker; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def work() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                time.sleep(delay_s)  # the work that it stands for
                connection.send(b"x")

    threading.Thread(target=work, daemon=True).start()
    return int(listener.getsockname()[1])


def _asked() -> Result:
    taken: list[list[float]] = [[] for _ in range(CLIENTS)]
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=_ask, args=(until, kept)) for kept in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_taken = sorted(1e3 * second for kept in taken for second in kept)
    count = len(all_taken)
    return Result(count / SECONDS, all_taken[count // 2], all_taken[count * 99 // 100])


def _ask(until: float, taken: list[float]) -> None:
    while (start := time.monotonic()) < until:
        with socket.create_connection((SERVICE, PORT), timeout=30) as sock:
            sock.send(b"x")
            assert sock.recv(1) == b"x"
        taken.append(time.monotonic() - start)


@contextmanager
def _places() -> Iterator[tuple[Path, Path]]:
    """A bpffs and a cgroup."""
    from bpf.features import mount_bpffs
    from cilia.linux.cgroup import find_cgroup2
    from tests.bpf.world import unmount

    root = find_cgroup2()
    assert root is not None, "no cgroup2 hierarchy is mounted"
    cgroup = root / f"cilia-bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        bpffs = Path(directory, "bpffs")
        bpffs.mkdir()
        mount_bpffs(bpffs)
        cgroup.mkdir()
        try:
            yield bpffs, cgroup
        finally:
            cgroup.rmdir()
            unmount(bpffs)

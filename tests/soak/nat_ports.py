# SPDX-License-Identifier: Apache-2.0
"""Use up every port of translation with connections that are closed; the next must be served.

    python -m tests.soak.nat_ports

A real agent, sixty clients, one node port with one remote backend: more connections than there are
ports, each answered and closed. Then one client asks until it is served. The same at the size of a
test: `tests/e2e/test_flow_faults.py`.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path

from tests.benchmarks.report import machine
from tests.e2e.nodes import exactly, node_address
from tests.e2e.passes import REMOTE, Asked, asked_world

CLIENTS = 60
#: Of translation, and a few connections more.
PORTS, CONNECTIONS = 32_768, 33_500
THREADS = 8
ANSWER_S = 1.0
#: A new connection that waits longer is an outage; how long it is looked at.
ALLOWED_S, WATCHED_S = 2.0, 60.0
MAPS = ("--bpf-ct-global-tcp-max=524288", "--bpf-nat-global-max=524288")


def client_address(number: int) -> str:
    return f"192.0.2.{100 + number}"


def asks(w: Asked, address: str) -> bool:
    """True if a connection from this address is answered; it is closed at once."""
    with w.nodes.client.netns.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_S)
        sock.bind((address, 0))
        try:
            sock.connect((node_address(1, 4), REMOTE.node_port))
            sock.sendall(b"\0\0\0\5hello")
            exactly(sock, int.from_bytes(exactly(sock, 4)))
        except OSError:
            return False
    return True


def use_up(w: Asked) -> int:
    """Return how many connections were answered, until one was not or all were."""
    numbers, failed = count(), threading.Event()
    answered = [0] * THREADS

    def work(thread: int) -> None:
        while not failed.is_set() and (number := next(numbers)) < CONNECTIONS:
            if asks(w, client_address(number % CLIENTS)):
                answered[thread] += 1
            else:
                failed.set()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answered)


def outage_s(w: Asked) -> float:
    """Return how long a client asks until it is answered, up to `WATCHED_S`."""
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) < WATCHED_S and not asks(w, client_address(0)):
        time.sleep(0.1)
    return waited_s


def main() -> int:
    with tempfile.TemporaryDirectory() as directory, asked_world(Path(directory), "natports") as w:
        client = w.nodes.client
        client.ip_batch(f"addr add {client_address(n)}/24 dev eth0" for n in range(CLIENTS))
        w.running(*MAPS)
        began = time.monotonic()
        answered = use_up(w)
        took_s = time.monotonic() - began
        waited_s = outage_s(w)
    print(machine())
    print(f"{answered} connections answered and closed in {took_s:.0f} s;")
    print(f"then a client waited {waited_s:.1f} s{' and more' if waited_s >= WATCHED_S else ''}.")
    if answered < PORTS:
        print(f"there are {PORTS} ports: something else is wrong")
        return 2
    if answered < CONNECTIONS or waited_s > ALLOWED_S:
        print("a client waited for the ports of closed connections")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""A server and a client of connections that carry one byte each way, in a namespace of their own.

``python -m tests.benchmarks.short_connections client NETNS CGROUP`` reads one JSON line a
measurement from its input (first address, number of addresses, port, seconds) and answers with the
connections a second. The client resets what it closes, so that no port waits for a minute. It ends
with its input.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path

from cilia.linux.netns import NetNS

RESET = struct.pack("ii", 1, 0)


def serve(addresses: list[str], port: int) -> None:
    """Answer on each address until the input ends."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=1024)
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()
    print(json.dumps("ready"), flush=True)
    sys.stdin.read()


def _answer(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        try:
            connection.sendall(connection.recv(1))
        except OSError:
            continue  # the client reset it
        finally:
            connection.close()


def ask() -> None:
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        first, count, port, seconds = json.loads(line)
        print(json.dumps(_rate(ip_address(first), count, port, seconds)), flush=True)


def _rate(first: object, count: int, port: int, seconds: float) -> float:
    start = ip_address(str(first))
    addresses = [str(start + random.randrange(count)) for _ in range(4096)]
    family = socket.AF_INET6 if start.version == 6 else socket.AF_INET
    done = 0
    begin = time.perf_counter()
    end = begin + seconds
    while time.perf_counter() < end:
        for address in random.sample(addresses, 64):
            with socket.socket(family) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.connect((address, port))
                client.sendall(b"?")
                client.recv(1)
            done += 1
    return done / (time.perf_counter() - begin)


def main() -> None:
    role, namespace, cgroup, *arguments = sys.argv[1:]
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
    with NetNS.named(namespace) as netns:
        netns.enter()
    if role == "server":
        serve(arguments[1:], int(arguments[0]))
    else:
        ask()


if __name__ == "__main__":
    main()

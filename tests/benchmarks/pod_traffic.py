# SPDX-License-Identifier: Apache-2.0
"""A server and a client of one TCP port, each in a namespace: how fast the way between them is.

``python -m tests.benchmarks.pod_traffic server NETNS ADDRESS`` serves until its input ends.
``... client NETNS ADDRESS`` reads a JSON line a measurement, [kind, seconds], and answers with a
rate: ``rr`` one byte there and back on one connection, ``crr`` the same on a connection of its own
(both a second), ``stream`` bytes a second.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from cilia.linux.netns import NetNS

PORT = 5201
RESET = struct.pack("ii", 1, 0)
CHUNK = bytes(1 << 17)
#: First byte of a connection: what it is for.
RR, STREAM = b"r", b"s"


def serve(address: str) -> None:
    listener = socket.create_server((address, PORT), backlog=1024)
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    print(json.dumps("ready"), flush=True)
    sys.stdin.read()


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                _answer(connection)
            except OSError:
                continue  # the client reset it


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kind = connection.recv(1)
    if kind == RR:
        connection.sendall(kind)
        while asked := connection.recv(1):
            connection.sendall(asked)
        return
    received, buffer = 0, bytearray(len(CHUNK))
    while count := connection.recv_into(buffer):
        received += count
    connection.sendall(struct.pack("Q", received))


def _connect(address: str, kind: bytes) -> socket.socket:
    client = socket.create_connection((address, PORT))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(kind)
    return client


def rr(address: str, seconds: float) -> float:
    with _connect(address, RR) as client:
        client.recv(1)
        return _rate(lambda: (client.send(b"?"), client.recv(1)), seconds)


def crr(address: str, seconds: float) -> float:
    def once() -> None:
        with _connect(address, RR) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.recv(1)

    return _rate(once, seconds)


def stream(address: str, seconds: float) -> float:
    with _connect(address, STREAM) as client:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            client.sendall(CHUNK)
        client.shutdown(socket.SHUT_WR)
        received: int = struct.unpack("Q", client.recv(8, socket.MSG_WAITALL))[0]
        return received / (time.perf_counter() - begin)


def _rate(once: Callable[[], object], seconds: float) -> float:
    done = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        for _ in range(32):
            once()
        done += 32
    return done / (now - begin)


KINDS: dict[str, Callable[[str, float], float]] = {"rr": rr, "crr": crr, "stream": stream}


def main() -> None:
    role, namespace, address = sys.argv[1:]
    with NetNS.named(namespace) as netns:
        netns.enter()
    if role == "server":
        serve(address)
        return
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        kind, seconds = json.loads(line)
        print(json.dumps(KINDS[kind](address, seconds)), flush=True)


if __name__ == "__main__":
    main()

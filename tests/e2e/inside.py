# SPDX-License-Identifier: Apache-2.0
"""A process inside a network namespace and a cgroup: serves and asks with real sockets.

Reads one JSON call a line (`{"call": "tcp", "args": [...]}`) and answers one JSON line; started by
`world.Inside`. It ends with its standard input. Standard library and pyroute2's setns alone.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pyroute2 import netns


def family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def serve(name: str, ip: str, port: int) -> bool:
    """A TCP and a UDP server that answer with their name."""
    tcp = socket.create_server((ip, port), family=family(ip), backlog=512)
    udp = socket.socket(family(ip), socket.SOCK_DGRAM)
    udp.bind((ip, port))

    def answer_tcp() -> None:
        while True:
            connection, _ = tcp.accept()
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        """Answers each message, until the client ends the connection."""
        with connection, contextlib.suppress(ConnectionResetError):
            while connection.recv(64):
                connection.sendall(name.encode())

    def answer_udp() -> None:
        while True:
            _, peer = udp.recvfrom(2048)
            udp.sendto(name.encode(), peer)

    threading.Thread(target=answer_tcp, daemon=True).start()
    threading.Thread(target=answer_udp, daemon=True).start()
    return True


def tcp(ip: str, port: int) -> dict[str, Any]:
    with socket.socket(family(ip), socket.SOCK_STREAM) as client:
        client.settimeout(3)
        try:
            client.connect((ip, port))
            client.sendall(b"?")
            answer = client.recv(64).decode()
        except OSError as error:
            return {"error": error.strerror or str(error), "errno": error.errno}
        return {"answer": answer, "peer": list(client.getpeername()[:2])}


def mapped(ip: str, port: int) -> dict[str, Any]:
    """TCP to an IPv4 address from an IPv6 socket."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as client:
        client.settimeout(3)
        client.connect((f"::ffff:{ip}", port))
        client.sendall(b"?")
        return {"answer": client.recv(64).decode(), "peer": list(client.getpeername()[:2])}


def udp_connected(ip: str, port: int) -> dict[str, Any]:
    with socket.socket(family(ip), socket.SOCK_DGRAM) as client:
        client.settimeout(3)
        client.connect((ip, port))
        client.send(b"?")
        answer, sender = client.recvfrom(64)
        return {
            "answer": answer.decode(),
            "from": list(sender[:2]),
            "peer": list(client.getpeername()[:2]),
        }


def udp_unconnected(ip: str, port: int, times: int = 1) -> dict[str, Any]:
    """Datagrams by sendto from one socket: each may go to another backend."""
    answers, senders = Counter[str](), set()
    with socket.socket(family(ip), socket.SOCK_DGRAM) as client:
        client.settimeout(3)
        for _ in range(times):
            client.sendto(b"?", (ip, port))
            answer, sender = client.recvfrom(64)
            answers[answer.decode()] += 1
            senders.add((sender[0], sender[1]))
    return {"answers": dict(answers), "from": [list(sender) for sender in sorted(senders)]}


class Loop:
    """New connections at a fixed rate in a thread, each failure kept with its time."""

    def __init__(self, ip: str, port: int, rate: float) -> None:
        self.target, self.rate = (ip, port), rate
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        due = time.monotonic()
        while not self.stopping.wait(max(0.0, due - time.monotonic())):
            due += 1 / self.rate
            result = tcp(*self.target)
            if "answer" in result:
                self.answers[result["answer"]] += 1
            else:
                self.failures.append(f"{time.time():.3f} {result['error']}")

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        self.thread.join()
        return {"answers": dict(self.answers), "failures": self.failures}


class Stream:
    """One TCP connection held open; each `ask` sends on it."""

    def __init__(self, ip: str, port: int) -> None:
        self.client = socket.create_connection((ip, port), timeout=3)

    def ask(self) -> str:
        self.client.sendall(b"?")
        return self.client.recv(64).decode()


LOOPS: list[Loop] = []
STREAMS: list[Stream] = []


def loop_start(ip: str, port: int, rate: float) -> int:
    LOOPS.append(Loop(ip, port, rate))
    return len(LOOPS) - 1


def loop_stop(number: int) -> dict[str, Any]:
    return LOOPS[number].stop()


def loop_count(number: int) -> int:
    return LOOPS[number].answers.total()


def stream_open(ip: str, port: int) -> int:
    STREAMS.append(Stream(ip, port))
    return len(STREAMS) - 1


def stream_ask(number: int) -> str:
    return STREAMS[number].ask()


CALLS = {
    f.__name__: f
    for f in (
        serve,
        tcp,
        mapped,
        udp_connected,
        udp_unconnected,
        loop_start,
        loop_stop,
        loop_count,
        stream_open,
        stream_ask,
    )
}


def main() -> None:
    namespace, cgroup = sys.argv[1], Path(sys.argv[2])
    (cgroup / "cgroup.procs").write_text("0")
    netns.setns(namespace)
    print('"ready"', flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = CALLS[message["call"]](*message["args"])
        except OSError as error:
            answer = {"error": error.strerror or str(error), "errno": error.errno}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

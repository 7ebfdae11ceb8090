# SPDX-License-Identifier: Apache-2.0
"""A process inside a network namespace and a cgroup: serves and asks with real sockets.

Reads one JSON call a line (`{"call": "tcp", "args": [...]}`) and answers one JSON line; started by
`world.Inside`. It ends with its standard input. Standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import socket
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cilia.linux.netns import NetNS


def family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def answer(name: str, question: bytes) -> bytes:
    """A number comes back as it is; any other question is answered by the server's name."""
    return question if question.isdigit() else name.encode()


def serve(name: str, ip: str, port: int) -> bool:
    """A TCP and a UDP server that answer with their name, or with the number that they got."""
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
            while question := connection.recv(64):
                connection.sendall(answer(name, question))

    def answer_udp() -> None:
        while True:
            question, peer = udp.recvfrom(2048)
            udp.sendto(answer(name, question), peer)

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


def framed(ip: str, port: int, kind: int, timeout_s: float) -> list[str]:
    """One question to a `nodes.Server`: its name, the client that it saw, what it was asked."""
    with socket.socket(family(ip), kind) as client:
        client.settimeout(timeout_s)
        client.connect((ip, port))
        if kind == socket.SOCK_STREAM:
            client.sendall(b"\0\0\0\5hello")
            with client.makefile("rb") as answers:
                answer = answers.read(int.from_bytes(answers.read(4)))
        else:
            client.send(b"hello")
            answer = client.recv(2048)
    return answer.decode().split("|", 2)


def series(
    source_port: int, targets: list[list[Any]], kind: int, timeout_s: float, reset: bool
) -> list[str]:
    """Questions from one port of the client to `nodes.Server`s, one after the other: `NAME ADDRESS`
    of who answered and whom it saw, or the name of an error.

    A socket is closed before the next one is made; `reset`: a connection ends at once.
    """
    return [_question(source_port, ip, port, kind, timeout_s, reset) for ip, port in targets]


def in_turn(source_port: int, targets: list[list[Any]], timeout_s: float) -> list[str]:
    """Datagrams from one port to each target in turn, twice, by a socket each: as `series`."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(_bound(source_port, ip, socket.SOCK_DGRAM)) for ip, _ in targets
        ]
        for client, target in zip(sockets, targets, strict=True):
            client.settimeout(timeout_s)
            client.connect(tuple(target))
        return [_told(client) for client in sockets * 2]


def _bound(port: int, peer: str, kind: int) -> socket.socket:
    made = socket.socket(family(peer), kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    return made


def _question(
    source_port: int, ip: str, port: int, kind: int, timeout_s: float, reset: bool
) -> str:
    with _bound(source_port, ip, kind) as client:
        client.settimeout(timeout_s)
        try:
            client.connect((ip, port))
        except OSError as error:
            return _error(error)
        told = _told(client)
        if reset and kind == socket.SOCK_STREAM:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return told


def _told(client: socket.socket) -> str:
    """Ask on a connected socket."""
    try:
        if client.type == socket.SOCK_DGRAM:
            client.send(b"hello")
            answer = client.recv(2048)
        else:
            client.sendall(b"\0\0\0\5hello")
            with client.makefile("rb") as answers:
                answer = answers.read(int.from_bytes(answers.read(4)))
    except OSError as error:
        return _error(error)
    return " ".join(answer.decode().split("|")[:2])


def _error(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


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

    def __init__(self, ip: str, port: int, source_port: int = 0) -> None:
        source = ("", source_port) if source_port else None
        self.client = socket.create_connection((ip, port), 3, source)

    def ask(self) -> str:
        self.client.sendall(b"?")
        return self.client.recv(64).decode()


class Datagrams:
    """Numbered datagrams at a fixed rate from one unconnected socket, and who answered them.

    A datagram is lost if its number does not come back from the address that it was sent to.
    """

    def __init__(self, ip: str, port: int, rate: float) -> None:
        self.target, self.rate = (ip, port), rate
        self.sent = 0
        self.returned: set[int] = set()
        self.failures: list[str] = []
        self.socket = socket.socket(family(ip), socket.SOCK_DGRAM)
        self.socket.settimeout(0.5)
        self.stopping = threading.Event()
        self.sender = threading.Thread(target=self.send, daemon=True)
        self.receiver = threading.Thread(target=self.receive, daemon=True)
        self.sender.start()
        self.receiver.start()

    def send(self) -> None:
        due = time.monotonic()
        while not self.stopping.wait(max(0.0, due - time.monotonic())):
            due += 1 / self.rate
            self.sent += 1
            try:
                self.socket.sendto(b"%d" % self.sent, self.target)
            except OSError as error:
                self.failures.append(f"{time.time():.3f} send {self.sent}: {error}")

    def receive(self) -> None:
        """Until all that was sent has come back, or for half a second nothing did."""
        while not (self.stopping.is_set() and len(self.returned) == self.sent):
            try:
                number, peer = self.socket.recvfrom(64)
            except TimeoutError:
                if self.stopping.is_set():
                    return
                continue
            except OSError as error:  # e.g. an ICMP error for an earlier datagram
                self.failures.append(f"{time.time():.3f} receive: {error}")
                continue
            if peer[:2] == self.target:
                self.returned.add(int(number))
            else:
                self.failures.append(f"{time.time():.3f} {number!r} came from {peer}")

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        self.sender.join()
        self.receiver.join()
        self.socket.close()
        lost = sorted(set(range(1, self.sent + 1)) - self.returned)
        return {"sent": self.sent, "lost": lost, "failures": self.failures}


class Streams:
    """Many TCP connections held open; one thread sends numbers on all of them in turn."""

    def __init__(self, ip: str, port: int, count: int) -> None:
        self.clients = [socket.create_connection((ip, port), timeout=3) for _ in range(count)]
        self.answered = 0
        self.failures: list[str] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        for number, client in itertools.cycle(enumerate(self.clients)):
            if self.stopping.wait(0.002):
                return
            question = b"%d" % self.answered
            try:
                client.sendall(question)
                found = client.recv(64)
            except OSError as error:
                found = str(error).encode()
            if found == question:
                self.answered += 1
            else:
                self.failures.append(f"{time.time():.3f} stream {number}: {found!r}")

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        self.thread.join()
        for client in self.clients:
            client.close()
        return {"answered": self.answered, "failures": self.failures}


HELD: list[socket.socket] = []


def hold(ip: str, port: int, udp: bool) -> int:
    """A socket that stays connected."""
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    client = socket.socket(family(ip), kind)
    client.connect((ip, port))
    client.setblocking(False)
    HELD.append(client)
    return len(HELD) - 1


def held(number: int) -> str:
    """What the owner finds: open, end, or the name of the error, which is told once."""
    try:
        found = HELD[number].recv(1)
    except BlockingIOError:
        return "open"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "data" if found else "end"


def bind(ip: str, port: int) -> str:
    """ok, or the name of the error that a listener gets."""
    with socket.socket(family(ip), socket.SOCK_STREAM) as listener:
        try:
            listener.bind((ip, port))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "ok"


LOOPS: list[Loop] = []
DATAGRAMS: list[Datagrams] = []
STREAMS: list[Stream] = []
MANY: list[Streams] = []


def loop_start(ip: str, port: int, rate: float) -> int:
    LOOPS.append(Loop(ip, port, rate))
    return len(LOOPS) - 1


def loop_stop(number: int) -> dict[str, Any]:
    return LOOPS[number].stop()


def loop_count(number: int) -> int:
    return LOOPS[number].answers.total()


def stream_open(ip: str, port: int, source_port: int = 0) -> int:
    STREAMS.append(Stream(ip, port, source_port))
    return len(STREAMS) - 1


def stream_port(number: int) -> int:
    return int(STREAMS[number].client.getsockname()[1])


def stream_ask(number: int) -> str:
    return STREAMS[number].ask()


def stream_close(number: int) -> bool:
    STREAMS[number].client.close()
    return True


def datagrams_start(ip: str, port: int, rate: float) -> int:
    DATAGRAMS.append(Datagrams(ip, port, rate))
    return len(DATAGRAMS) - 1


def datagrams_stop(number: int) -> dict[str, Any]:
    return DATAGRAMS[number].stop()


def datagrams_sent(number: int) -> int:
    return DATAGRAMS[number].sent


def streams_open(ip: str, port: int, count: int) -> int:
    MANY.append(Streams(ip, port, count))
    return len(MANY) - 1


def streams_stop(number: int) -> dict[str, Any]:
    return MANY[number].stop()


CALLS = {
    f.__name__: f
    for f in (
        serve,
        tcp,
        framed,
        series,
        mapped,
        udp_connected,
        udp_unconnected,
        loop_start,
        loop_stop,
        loop_count,
        stream_open,
        stream_port,
        stream_ask,
        stream_close,
        datagrams_start,
        datagrams_stop,
        datagrams_sent,
        streams_open,
        streams_stop,
        hold,
        held,
        bind,
    )
}


def main() -> None:
    namespace, cgroup = sys.argv[1], Path(sys.argv[2])
    (cgroup / "cgroup.procs").write_text("0")
    NetNS.named(namespace).enter()
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

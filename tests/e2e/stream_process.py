# SPDX-License-Identifier: Apache-2.0
"""A process with servers and numbered clients in many namespaces, all in one thread.

Reads one JSON call a line (`{"call": "serve", "args": [...]}`) and answers with one JSON line;
started by `streams.Streams`. It ends with its standard input. A client sends a number at each tick
and expects it back. The thread measures how late its own ticks are, so that a busy machine is not
taken for a gap of the network.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.e2e.stream_clients import KINDS, Client, Server

TICK_S = 0.04
#: After this time a question counts as lost.
LOST_S = 2.0

selector = selectors.DefaultSelector()
clients: list[Client] = []
servers: list[Server] = []


class Ticks:
    """When the clients send, and how late that was."""

    def __init__(self) -> None:
        self.due = time.monotonic()
        self.late_s = 0.0

    def wait_s(self) -> float:
        return max(0.0, self.due - time.monotonic())

    def send_if_due(self) -> None:
        now = time.monotonic()
        if now < self.due:
            return
        self.late_s = max(self.late_s, now - self.due)
        self.due = max(self.due + TICK_S, now)
        for client in clients:
            client.tick()


ticks = Ticks()


def turn(wait_s: float) -> None:
    """Wait for sockets at most so long, and serve those that are ready."""
    for key, _ in selector.select(wait_s):
        if key.data is not None:
            key.data()


def serve(netns: str, address: str, port: int) -> bool:
    servers.append(Server(selector, netns, address, port))
    return True


def open_client(name: str, kind: str, netns: str, address: str, port: int) -> bool:
    clients.append(KINDS[kind](selector, name, netns, address, port))
    return True


def answered() -> list[int]:
    """How many answers each client had since the last look."""
    return [client.answered for client in clients]


def read() -> dict[str, Any]:
    """Send nothing, wait for what is out, and tell what was seen since the last time."""
    deadline = time.monotonic() + LOST_S
    while any(client.waits() for client in clients) and time.monotonic() < deadline:
        turn(0.05)
    told = {"late_s": ticks.late_s, "clients": [client.told() for client in clients]}
    ticks.late_s, ticks.due = 0.0, time.monotonic()
    return told


CALLS: dict[str, Callable[..., Any]] = {
    "serve": serve,
    "open": open_client,
    "answered": answered,
    "read": read,
}


def main() -> None:
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    os.set_blocking(sys.stdin.fileno(), False)
    print('"ready"', flush=True)
    rest = b""
    while True:
        turn(ticks.wait_s())
        ticks.send_if_due()
        try:
            part = os.read(sys.stdin.fileno(), 65536)
        except BlockingIOError:
            continue
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            print(json.dumps(CALLS[message["call"]](*message["args"])), flush=True)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Clients that send numbers, and the server that sends them back; for one thread and a selector.

All sockets are non-blocking. A client keeps the numbers that are out, and the longest time between
two answers. `tcp` has one connection for all numbers, `new` one for each, `udp` a connected socket,
`ping` echo requests.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import selectors
import socket
import struct
import time
from functools import partial
from typing import Any

from cilia.linux.netns import NetNS

NUMBER = struct.Struct("!Q")
#: New connections come at each so-manieth tick.
NEW_EVERY = 5
#: A connection that took so long lost its first packet: the kernel repeats it after a second.
CONNECT_S = 0.9
ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
ECHO_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}
ECHO = struct.Struct("!BBHHHQ")
FAILURES = 20
identifiers = itertools.count(1000)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def made(netns: str, address: str, kind: int, protocol: int = 0) -> socket.socket:
    """A non-blocking socket in a namespace."""
    with NetNS.open(netns) as opened:
        sock = opened.socket(family(address), kind, protocol)
    sock.setblocking(False)
    return sock


class Server:
    """TCP and UDP on one port; sends back what comes."""

    def __init__(
        self, selector: selectors.BaseSelector, netns: str, address: str, port: int
    ) -> None:
        self._selector = selector
        self._listener = made(netns, address, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, port))
        self._listener.listen(512)
        self._udp = made(netns, address, socket.SOCK_DGRAM)
        self._udp.bind((address, port))
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        selector.register(self._udp, selectors.EVENT_READ, self._answer_datagram)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._selector.register(
            connection, selectors.EVENT_READ, partial(self._answer_stream, connection)
        )

    def _answer_stream(self, connection: socket.socket) -> None:
        try:
            content = connection.recv(4096)
            if content:
                connection.send(content)
                return
        except OSError:
            pass  # the client tells
        self._selector.unregister(connection)
        connection.close()

    def _answer_datagram(self) -> None:
        with contextlib.suppress(OSError):  # the client misses the answer
            content, client = self._udp.recvfrom(2048)
            self._udp.sendto(content, client)


class Client:
    """What all kinds have; a subclass sends, and tells which numbers came back."""

    def __init__(
        self, selector: selectors.BaseSelector, name: str, netns: str, address: str, port: int
    ) -> None:
        self.name = name
        self._selector, self._netns = selector, netns
        self._target = (address, port)
        self._next = 0
        self._reset()
        self._start()

    def _reset(self) -> None:
        self.sent = self.answered = self.broken = 0
        self.failures: list[str] = []
        self._out: dict[int, float] = {}
        self._last = 0.0
        self._gap_s = 0.0

    def _start(self) -> None:
        """Open what lasts."""

    def tick(self) -> None:
        """Send the next number."""
        raise NotImplementedError

    def waits(self) -> bool:
        """Answers are missing."""
        return bool(self._out)

    def told(self) -> dict[str, Any]:
        """Sums since the last time, which begin anew."""
        told = {
            "name": self.name,
            "sent": self.sent,
            "lost": self.sent - self.answered,
            "gap_s": round(self._gap_s, 3),
            "broken": self.broken,
            "failures": self.failures,
        }
        self._reset()
        return told

    def _number(self) -> int:
        self._next += 1
        self.sent += 1
        self._out[self._next] = now = time.monotonic()
        self._last = self._last or now
        return self._next

    def _came(self, number: int) -> None:
        if self._out.pop(number, None) is None:
            return  # counted as lost in the stretch before
        now = time.monotonic()
        self.answered += 1
        self._gap_s, self._last = max(self._gap_s, now - self._last), now

    def _failed(self, error: OSError | str) -> None:
        if len(self.failures) < FAILURES:
            self.failures.append(f"{time.time():.3f} {self.name}: {error}")


class Datagrams(Client):
    """UDP. A connected socket hears of ICMP errors."""

    def _start(self) -> None:
        self._sock = made(self._netns, self._target[0], socket.SOCK_DGRAM)
        self._sock.connect(self._target)
        self._selector.register(self._sock, selectors.EVENT_READ, self._receive)

    def tick(self) -> None:
        try:
            self._sock.send(NUMBER.pack(self._number()))
        except OSError as error:
            self._failed(error)

    def _receive(self) -> None:
        try:
            self._came(*NUMBER.unpack(self._sock.recv(64)))
        except OSError as error:
            self._failed(error)


class Pings(Client):
    """Echo requests of one identifier from a raw socket."""

    def _start(self) -> None:
        self._family = family(self._target[0])
        protocol = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
        self._sock = made(self._netns, self._target[0], socket.SOCK_RAW, protocol[self._family])
        self._id = next(identifiers)
        self._selector.register(self._sock, selectors.EVENT_READ, self._receive)

    def tick(self) -> None:
        number = self._number()
        head = (ECHO_REQUEST[self._family], 0)
        fields = (self._id, number & 0xFFFF, number)
        checksum = 0 if self._family == socket.AF_INET6 else _sum(ECHO.pack(*head, 0, *fields))
        try:
            self._sock.sendto(ECHO.pack(*head, checksum, *fields), (self._target[0], 0))
        except OSError as error:
            self._failed(error)

    def _receive(self) -> None:
        try:
            content = self._sock.recv(2048)
        except OSError as error:
            self._failed(error)
            return
        content = content[20 * (self._family == socket.AF_INET) :]
        if len(content) != ECHO.size:
            return
        kind, _, _, identifier, _, number = ECHO.unpack(content)
        if (kind, identifier) == (ECHO_REPLY[self._family], self._id):
            self._came(number)


def _sum(content: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Stream(Client):
    """One TCP connection; when it breaks, the next one is opened."""

    def _start(self) -> None:
        self._sock = made(self._netns, self._target[0], socket.SOCK_STREAM)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._connected = False
        _connect(self._sock, self._target)
        self._selector.register(
            self._sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self._ready
        )

    def tick(self) -> None:
        if not self._connected:
            return
        try:
            self._sock.send(NUMBER.pack(self._number()))
        except OSError as error:
            self._break(error)

    def _ready(self) -> None:
        try:
            if not self._connected:
                self._is_connected()
                return
            content = self._sock.recv(4096)
            if not content:
                raise ConnectionError("the connection ended")
        except OSError as error:
            self._break(error)
            return
        content = self._rest + content
        whole = len(content) - len(content) % NUMBER.size
        for (number,) in NUMBER.iter_unpack(content[:whole]):
            self._came(number)
        self._rest = content[whole:]

    def _is_connected(self) -> None:
        """Raises: OSError."""
        if error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, errno.errorcode[error])
        self._connected = True
        self._selector.modify(self._sock, selectors.EVENT_READ, self._ready)

    def _break(self, error: OSError) -> None:
        self._failed(error)
        self.broken += 1
        self._selector.unregister(self._sock)
        self._sock.close()
        self._out.clear()
        self._start()


class Connections(Client):
    """A TCP connection for each number."""

    def _start(self) -> None:
        self._ticks = 0
        self._open: dict[int, socket.socket] = {}

    def tick(self) -> None:
        self._ticks += 1
        if self._ticks % NEW_EVERY:
            return
        number = self._number()
        sock = self._open[number] = made(self._netns, self._target[0], socket.SOCK_STREAM)
        try:
            _connect(sock, self._target)
        except OSError as error:
            self._end(number, error)
            return
        self._selector.register(sock, selectors.EVENT_WRITE, partial(self._connected, number))

    def told(self) -> dict[str, Any]:
        """Connections that have no answer yet are given up. They come too seldom for gaps."""
        for number in list(self._open):
            self._end(number, "no answer")
        return super().told() | {"gap_s": 0.0}

    def _connected(self, number: int) -> None:
        sock = self._open[number]
        refusal = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refusal:
            self._end(number, errno.errorcode[refusal])
            return
        if time.monotonic() - self._out[number] > CONNECT_S:
            self._failed("the first packet of a connection was repeated")
        try:
            sock.send(NUMBER.pack(number))
        except OSError as error:
            self._end(number, error)
            return
        self._selector.modify(sock, selectors.EVENT_READ, partial(self._answer, number))

    def _answer(self, number: int) -> None:
        try:
            if self._open[number].recv(64) != NUMBER.pack(number):
                raise ConnectionError("the connection ended")
        except OSError as error:
            self._end(number, error)
            return
        self._came(number)
        self._end(number)

    def _end(self, number: int, error: OSError | str = "") -> None:
        sock = self._open.pop(number)
        with contextlib.suppress(KeyError):  # it could not even connect
            self._selector.unregister(sock)
        sock.close()
        if error:
            self._out.pop(number, None)
            self.broken += 1
            self._failed(error)


def _connect(sock: socket.socket, target: tuple[str, int]) -> None:
    """Begin. Raises: OSError."""
    error = sock.connect_ex(target)
    if error not in (0, errno.EINPROGRESS):
        raise OSError(error, errno.errorcode[error])


KINDS: dict[str, type[Client]] = {
    "tcp": Stream,
    "new": Connections,
    "udp": Datagrams,
    "ping": Pings,
}

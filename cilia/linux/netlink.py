# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: ask the kernel (`Netlink`) and hear what changes in it (`Subscription`).

Two kinds of socket, because a subscription may overflow and a request must not: a request's answer
never shares a receive buffer with a burst of events. Both can be opened inside another network
namespace and are then used from any thread. Requests are built with pyroute2's message classes;
answers and events are decoded by `rtnl`. Source of the protocol: RFC 3549 and netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from types import TracebackType
from typing import Any, Final, Self

import anyio
from pyroute2.netlink import nlmsg

from cilia.linux import rtnl
from cilia.linux.errors import NetlinkError, Overrun, raise_if
from cilia.linux.netns import NetNS

__all__ = ["Group", "Netlink", "NetlinkSocket", "Request", "Subscription", "failure_of"]

SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_CAP_ACK: Final = 10  # an error does not carry the whole request back
NETLINK_EXT_ACK: Final = 11  # an error carries a sentence
NETLINK_GET_STRICT_CHK: Final = 12  # filters in a dump request are obeyed, not ignored
SO_RCVBUFFORCE: Final = 33

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_ACK_TLVS: Final = 0x200  # in an answer: attributes follow

# IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS: counters are half of what a link has to say.
_SKIP_STATS: Final = struct.pack("=HHI", 8, 29, 8)

# The kernel's answers to a dump come in datagrams of at most 32 KiB.
RECEIVE_BYTES: Final = 1 << 16
# About 10,000 route events: an skb of 768 bytes is charged for a message of 100.
SUBSCRIPTION_BUFFER_BYTES: Final = 8 << 20
# A burst is handed on in pieces, so that the reader's loop is not held up for longer than ~5 ms.
BATCH_MESSAGES: Final = 256
# A dump that was interrupted by a change is asked for again; under a storm of changes the last
# answer is taken, since the events about the difference are on their way.
DUMP_ATTEMPTS: Final = 8
# Requests of one send. All their answers are queued before it returns, each charged with an skb of
# about 1 KiB against the receive buffer (212,992 bytes unless it was changed).
SEND_CHUNK: Final = 128


class Group(IntEnum):
    """Multicast groups of rtnetlink (linux/rtnetlink.h, RTNLGRP_*)."""

    LINK = 1
    NEIGHBOR = 3
    TC = 4
    IPV4_ADDRESS = 5
    IPV4_ROUTE = 7
    IPV4_RULE = 8
    IPV6_ADDRESS = 9
    IPV6_ROUTE = 11
    IPV6_RULE = 19
    NEXTHOP = 32


class Request:
    """One message to the kernel: pyroute2's message, its type and flags, and what it is for."""

    __slots__ = ("flags", "kind", "message", "what")

    def __init__(self, message: nlmsg, kind: int, flags: int, what: str) -> None:
        self.message = message
        self.kind = kind
        self.flags = NLM_F_REQUEST | NLM_F_ACK | flags
        self.what = what

    def encode(self, sequence: int) -> bytes:
        """The message as bytes, padded to 4."""
        message: Any = self.message
        message["header"] = {
            "type": self.kind,
            "flags": self.flags,
            "sequence_number": sequence,
            "pid": 0,
        }
        message.reset()
        message.encode()
        data = bytes(message.data)
        return data + bytes(-len(data) % 4)


class NetlinkSocket:
    """A netlink socket inside `netns` (the caller's namespace without one)."""

    def __init__(self, netns: NetNS | None, protocol: int = socket.NETLINK_ROUTE) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        family = socket.AF_NETLINK
        if netns is None:
            self._socket = socket.socket(family, kind, protocol)
        else:
            self._socket = netns.socket(family, kind, protocol)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def _set_receive_buffer(self, size_bytes: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes)
        except PermissionError:  # without CAP_NET_ADMIN: as much as rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket; idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Netlink(NetlinkSocket):
    """Requests and dumps, one at a time, from any thread."""

    def __init__(self, netns: NetNS | None = None) -> None:
        super().__init__(netns)
        self._socket.bind((0, 0))
        self._lock = threading.Lock()
        self._sequence = 0

    # Requests

    def request(self, message: Request) -> None:
        """Sends one request and waits for the kernel's acknowledgement.

        Raises:
            NetlinkError: the kernel refused it.
        """
        raise_if(self.request_batch([message])[0])

    def request_batch(self, messages: Sequence[Request]) -> list[NetlinkError | None]:
        """Sends all in as few system calls as possible; one result each, in order.

        The kernel handles them one after another; a refused one does not stop those behind it.
        """
        results: list[NetlinkError | None] = [None] * len(messages)
        with self._lock:
            for start in range(0, len(messages), SEND_CHUNK):
                self._exchange(start, messages[start : start + SEND_CHUNK], results)
        return results

    def _next_sequence(self) -> int:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        return self._sequence

    def _exchange(
        self, first: int, messages: Sequence[Request], results: list[NetlinkError | None]
    ) -> None:
        numbers = [self._next_sequence() for _ in messages]
        waiting = dict(zip(numbers, range(len(messages)), strict=True))
        self._socket.send(b"".join(map(Request.encode, messages, numbers)))
        while waiting:
            data = self._socket.recv(RECEIVE_BYTES)
            for kind, flags, sequence, start, end in rtnl.headers(data):
                if kind != rtnl.NLMSG_ERROR or sequence not in waiting:
                    continue  # a late answer to a request that was given up
                position = waiting.pop(sequence)
                # The copy of the request is capped to its header: 16 bytes behind the code.
                results[first + position] = failure_of(
                    messages[position].what, data[start:end], flags, details_at=20
                )

    # Dumps

    def dump(self, kind: int, body: bytes) -> list[rtnl.Message]:
        """All objects of an RTM_GET* type; `body` is the family header with its filters.

        Raises:
            NetlinkError: the kernel refused the dump.
        """
        with self._lock:
            for _ in range(DUMP_ATTEMPTS):
                messages, interrupted = self._ask(kind, NLM_F_DUMP, body)
                if not interrupted:
                    break
        return messages

    def _ask(self, kind: int, mode: int, body: bytes) -> tuple[list[rtnl.Message], bool]:
        """The answer to one RTM_GET*, and whether a change interrupted it.

        A dump ends with NLMSG_DONE, a single object with the acknowledgement that is asked for.
        """
        sequence = self._next_sequence()
        flags = NLM_F_REQUEST | (mode or NLM_F_ACK)
        header = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0)
        self._socket.send(header + body)
        messages: list[rtnl.Message] = []
        interrupted = False
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            done, cut = _answer_part(data, sequence)
            interrupted |= cut
            messages += rtnl.decode(data)
            if done:
                return messages, interrupted

    def link(self, name: str) -> rtnl.LinkMessage | None:
        """The device of this name; None if there is none.

        Raises:
            NetlinkError: the kernel refused for another reason.
        """
        text = name.encode() + b"\0"
        attribute = struct.pack("=HH", 4 + len(text), 3) + text + bytes(-len(text) % 4)
        try:
            with self._lock:
                found, _ = self._ask(rtnl.RTM_GETLINK, 0, bytes(16) + _SKIP_STATS + attribute)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return next((m for m in found if isinstance(m, rtnl.LinkMessage)), None)

    def links(self) -> list[rtnl.LinkMessage]:
        """All network devices of the namespace."""
        found = self.dump(rtnl.RTM_GETLINK, bytes(16) + _SKIP_STATS)
        return [m for m in found if isinstance(m, rtnl.LinkMessage)]

    def addresses(self) -> list[rtnl.AddressMessage]:
        """All IPv4 and IPv6 addresses of the namespace."""
        found = self.dump(rtnl.RTM_GETADDR, bytes(8))
        return [m for m in found if isinstance(m, rtnl.AddressMessage)]

    def routes(
        self, *, index: int = 0, protocol: int = 0, table: int = 0
    ) -> list[rtnl.RouteMessage]:
        """The routes of both families, of one device, protocol or table where given (0 = any)."""
        found: list[rtnl.Message] = []
        for family in (rtnl.AF_INET, rtnl.AF_INET6):
            body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, min(table, 252), protocol, 0, 0, 0)
            if table:
                body = body[:4] + bytes([table if table < 256 else 252]) + body[5:]
                body += struct.pack("=HHI", 8, 15, table)
            if index:
                body += struct.pack("=HHI", 8, 4, index)
            try:
                found += self.dump(rtnl.RTM_GETROUTE, body)
            except NetlinkError as error:
                # No such table, no such device any more, no IPv6: no routes there.
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                    raise
        return [m for m in found if isinstance(m, rtnl.RouteMessage)]

    def neighbors(self) -> list[rtnl.NeighborMessage]:
        """The ARP and ND tables."""
        found = self.dump(rtnl.RTM_GETNEIGH, bytes(12))
        return [m for m in found if isinstance(m, rtnl.NeighborMessage)]

    def rules(self) -> list[rtnl.RuleMessage]:
        """The policy routing rules of both families."""
        found = self.dump(rtnl.RTM_GETRULE, bytes(12))
        return [m for m in found if isinstance(m, rtnl.RuleMessage)]

    def filters(self, index: int, parent: int) -> list[rtnl.FilterMessage]:
        """The tc filters below `parent` of the device."""
        body = struct.pack("=BxxxiIII", 0, index, 0, parent, 0)
        found = self.dump(rtnl.RTM_GETTFILTER, body)
        return [m for m in found if isinstance(m, rtnl.FilterMessage)]


def _answer_part(data: bytes, sequence: int) -> tuple[bool, bool]:
    """(the answer ends here, it was interrupted by a change)."""
    interrupted = False
    for kind, flags, number, start, end in rtnl.headers(data):
        if number != sequence:
            continue
        interrupted |= flags & rtnl.NLM_F_DUMP_INTR != 0
        if kind in (rtnl.NLMSG_DONE, rtnl.NLMSG_ERROR):
            details_at = 20 if kind == rtnl.NLMSG_ERROR else 4
            raise_if(failure_of("read", data[start:end], flags, details_at))
            return True, interrupted
    return False, interrupted


def failure_of(what: str, payload: bytes, flags: int, details_at: int) -> NetlinkError | None:
    """The status in an acknowledgement or at a dump's end as an exception; None for success."""
    code = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
    if code == 0:
        return None
    detail = ""
    if flags & NLM_F_ACK_TLVS:
        found = rtnl.attributes(payload, details_at)
        detail = found.get(1, b"").rstrip(b"\0").decode(errors="replace")
    return NetlinkError(code, what, detail)


class Subscription(NetlinkSocket):
    """Events of some multicast groups, in the order in which the kernel sent them."""

    def __init__(
        self,
        groups: Sequence[Group],
        netns: NetNS | None = None,
        *,
        buffer_bytes: int = SUBSCRIPTION_BUFFER_BYTES,
    ) -> None:
        super().__init__(netns)
        self._set_receive_buffer(buffer_bytes)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    async def wait(self) -> None:
        """Returns when something can be read (or was lost)."""
        await anyio.wait_readable(self._socket)

    def read(self, limit: int = BATCH_MESSAGES) -> list[rtnl.Message]:
        """What is there now, at most about `limit` messages; empty if nothing is.

        Raises:
            Overrun: events were lost. The socket works on; older events may still be in it.
        """
        messages: list[rtnl.Message] = []
        for data in self._datagrams():
            messages += rtnl.decode(data)
            if len(messages) >= limit:
                break
        return messages

    def _datagrams(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise Overrun(os.strerror(errno.ENOBUFS)) from error
                raise

    def discard(self) -> None:
        """Throws away all events that are waiting, before everything is read afresh."""
        while True:
            try:
                for _ in self._datagrams():
                    pass
            except Overrun:
                continue
            return

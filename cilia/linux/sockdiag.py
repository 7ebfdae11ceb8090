# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP sockets of one network namespace, listed and destroyed: sock_diag(7).

A socket is known by its cookie, the number that BPF programs get from bpf_get_socket_cookie as
well: the kernel never gives it to another one. Destroyed, a socket fails with ECONNABORTED; its
owner keeps the descriptor and has to open a new one. Layouts: linux/inet_diag.h.

Each protocol is a module where distributions build the kernel: tcp_diag, udp_diag. The kernel loads
it upon the first request, by the modprobe of the machine and not of the caller's container; it
answers ENOENT if the machine has no such module or its administrator forbade it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

import msgspec

from cilia.linux import rtnl
from cilia.linux.errors import NetlinkError, SocketsUnlisted, raise_if
from cilia.linux.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    RECEIVE_BYTES,
    NetlinkSocket,
    failure_of,
)
from cilia.linux.netns import NetNS

__all__ = ["ALL_STATES", "CONNECTED", "Socket", "SocketDiag", "State"]

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
SOCK_DESTROY: Final = 21

# sdiag_family, sdiag_protocol, idiag_ext, pad, idiag_states
_REQUEST: Final = struct.Struct("=BBBBI")
# struct inet_diag_sockid: ports and addresses in network order, interface, cookie.
_SOCKID: Final = struct.Struct("=2s2s16s16sIQ")
# idiag_family, idiag_state, idiag_timer, idiag_retrans, then the sockid, then five counters
_MESSAGE: Final = struct.Struct("=BBBB2s2s16s16sIQIIIII")
_MAPPED: Final = bytes(10) + b"\xff\xff"
_PROTOCOLS: Final = {int(socket.IPPROTO_TCP): "tcp", int(socket.IPPROTO_UDP): "udp"}


class State(IntEnum):
    """States of TCP (net/tcp_states.h). A UDP socket is ESTABLISHED with a peer, else CLOSE."""

    ESTABLISHED = 1
    SYN_SENT = 2
    TIME_WAIT = 6
    CLOSE = 7
    LISTEN = 10


ALL_STATES: Final = 0xFFFFFFFF
# Sockets that someone holds and that have a peer; in TIME_WAIT the kernel alone keeps one.
CONNECTED: Final = ALL_STATES & ~(1 << State.TIME_WAIT | 1 << State.CLOSE | 1 << State.LISTEN)


class Socket(msgspec.Struct, frozen=True, gc=False):
    """One socket as the kernel describes it. Addresses are packed, 4 bytes or 16; that of an IPv6
    socket that talks IPv4 is mapped (``::ffff:a.b.c.d``, 16 bytes)."""

    family: int
    protocol: int
    state: int
    source: bytes
    source_port: int
    peer: bytes
    peer_port: int
    interface: int
    cookie: int
    inode: int

    @property
    def plain_peer(self) -> bytes:
        """The peer's address, a mapped one as the 4 bytes of IPv4."""
        return self.peer[12:] if self.peer[:12] == _MAPPED else self.peer


class SocketDiag(NetlinkSocket):
    """Asks about one namespace, from one thread at a time."""

    def __init__(self, netns: NetNS | None = None) -> None:
        super().__init__(netns, NETLINK_SOCK_DIAG)
        self._socket.bind((0, 0))
        self._sequence = 0

    def sockets(self, family: int, protocol: int, states: int = ALL_STATES) -> Iterator[Socket]:
        """Those of an address family and IP protocol in any of `states`, a set of bits.

        A socket that comes or goes meanwhile may be there or not.
        Raises: SocketsUnlisted for a protocol that the kernel cannot list, NetlinkError otherwise.
        """
        request = _REQUEST.pack(family, protocol, 0, 0, states) + bytes(_SOCKID.size)
        sequence = self._send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request)
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            for kind, flags, number, start, end in rtnl.headers(data):
                if number != sequence:
                    continue
                if kind == SOCK_DIAG_BY_FAMILY:
                    yield _decode(data, start, protocol)
                elif kind in (rtnl.NLMSG_DONE, rtnl.NLMSG_ERROR):
                    at = 20 if kind == rtnl.NLMSG_ERROR else 4
                    try:
                        raise_if(failure_of("list sockets", data[start:end], flags, at))
                    except NetlinkError as error:
                        if error.errno != errno.ENOENT:
                            raise
                        name = _PROTOCOLS.get(protocol, str(protocol))
                        raise SocketsUnlisted(name) from None
                    return

    def can_list(self, protocol: int) -> bool:
        """True if the kernel lists the sockets of a protocol; loads its module if that is allowed.

        Raises: NetlinkError.
        """
        try:
            list(self.sockets(socket.AF_INET, protocol, states=0))
        except SocketsUnlisted:
            return False
        return True

    def destroy(self, found: Socket) -> bool:
        """Abort a socket; False if it is gone or has another peer by now.

        Raises: NetlinkError with EOPNOTSUPP where the kernel cannot, EPERM without CAP_NET_ADMIN.
        """
        try:
            raise_if(self._destroy(found))
        except NetlinkError as error:
            # ESTALE: another socket has the addresses of this one.
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        return True

    def can_destroy(self) -> bool:
        """Whether the kernel has CONFIG_INET_DIAG_DESTROY and lets this process use it."""
        nobody = Socket(
            socket.AF_INET, socket.IPPROTO_UDP, 0, b"\x7f\0\0\1", 1, b"\x7f\0\0\1", 1, 0, 1, 0
        )
        failure = self._destroy(nobody)
        return failure is None or failure.errno in (errno.ENOENT, errno.ESTALE)

    def _destroy(self, found: Socket) -> NetlinkError | None:
        number = _SOCKID.pack(
            found.source_port.to_bytes(2, "big"),
            found.peer_port.to_bytes(2, "big"),
            found.source,
            found.peer,
            found.interface,
            found.cookie,
        )
        request = _REQUEST.pack(found.family, found.protocol, 0, 0, ALL_STATES) + number
        sequence = self._send(SOCK_DESTROY, NLM_F_ACK, request)
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            for kind, flags, answered, start, end in rtnl.headers(data):
                if kind == rtnl.NLMSG_ERROR and answered == sequence:
                    return failure_of("destroy socket", data[start:end], flags, details_at=20)

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        header = struct.pack(
            "=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0
        )
        self._socket.send(header + body)
        return self._sequence


def _decode(data: bytes, start: int, protocol: int) -> Socket:
    family, state, _, _, sport, dport, source, peer, interface, cookie, *_, inode = (
        _MESSAGE.unpack_from(data, start)
    )
    size = 4 if family == socket.AF_INET else 16
    return Socket(
        family,
        protocol,
        state,
        source[:size],
        sport[0] << 8 | sport[1],
        peer[:size],
        dport[0] << 8 | dport[1],
        interface,
        cookie,
        inode,
    )

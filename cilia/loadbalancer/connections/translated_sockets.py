# SPDX-License-Identifier: Apache-2.0
"""Sockets whose peer is a backend that they never dialled: the socket map joined with the kernel's
own list of sockets.

::

    cilia_lb4_sk, cilia_lb6_sk    (cookie, backend) -> frontend     written when a socket connects
    sock_diag, each namespace      cookie, peer, protocol            what is open now

An entry alone says little: its socket may be closed, or connected elsewhere by now. A socket alone
says nothing: it may have dialled the backend itself. Both together are a use of a Service.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bpf.maps.lb import (
    IPV4,
    IPV6,
    LBMaps,
    SocketKey,
    SocketValue,
    decode_socket,
    decode_socket_key,
    encode_socket_key,
)
from bpf.maps.text import PROTOCOL_NAMES
from cilia.linux.errors import SocketsUnlisted
from cilia.linux.namespaces import DIRECTORIES, network_namespaces
from cilia.linux.netns import NetNS
from cilia.linux.sockdiag import ALL_STATES, CONNECTED, Socket, SocketDiag
from tables.addressing import SCOPE_EXTERNAL, L3n4Addr, mapped_ip

__all__ = [
    "Entries",
    "Translated",
    "Use",
    "Way",
    "count_connections",
    "dead_keys",
    "listed_protocols",
    "namespaces_of",
    "read_entries",
    "translated",
]

UDP: Final = int(socket.IPPROTO_UDP)
PROTOCOLS: Final = (int(socket.IPPROTO_TCP), UDP)
# Bound once: a map has a hundred thousand entries.
_KEY4_BYTES: Final = IPV4.socket_key.size
_VALUE4_BYTES: Final = IPV4.socket_value.size
_BACKEND4, _BACKEND6 = IPV4.socket_backend, IPV6.socket_backend
_FRONTEND4, _FRONTEND6 = IPV4.socket_frontend, IPV6.socket_frontend


class Way(NamedTuple):
    """One entry, decoded: whose, where it leads, and what was dialled."""

    key: SocketKey
    value: SocketValue


class Translated(NamedTuple):
    """An open socket and its entry."""

    socket: Socket
    way: Way
    raw_key: bytes


class Entries:
    """The entries of both families at one moment; `drop` removes what is of no use any more."""

    def __init__(self, maps: LBMaps) -> None:
        self._maps = maps
        self._raw: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._raw)

    def load(self, wanted: Callable[[bytes, bytes], bool] = lambda key, value: True) -> None:
        """Read the maps; only what `wanted` says of raw key and value is kept."""
        self._raw = {
            key: value
            for family in (self._maps.v4, self._maps.v6)
            for key, value in family.socket.items()
            if wanted(key, value)
        }

    def of(self, found: Socket) -> Translated | None:
        """The entry of an open socket, by its cookie and its peer."""
        key = SocketKey(found.cookie, found.plain_peer, found.peer_port)
        raw = encode_socket_key(key)
        value = self._raw.get(raw)
        return None if value is None else Translated(found, Way(key, decode_socket(value)), raw)

    def cookies(self) -> dict[int, list[bytes]]:
        """The keys of each socket."""
        found: dict[int, list[bytes]] = {}
        for key in self._raw:
            found.setdefault(decode_socket_key(key).cookie, []).append(key)
        return found

    def drop(self, raw_keys: Iterable[bytes]) -> None:
        """Delete entries; one that is gone already is no error."""
        keys = list(raw_keys)
        v4_bytes = IPV4.socket_key.size
        self._maps.v4.socket.delete_batch([key for key in keys if len(key) == v4_bytes])
        self._maps.v6.socket.delete_batch([key for key in keys if len(key) != v4_bytes])
        for key in keys:
            self._raw.pop(key, None)


def read_entries(maps: LBMaps) -> Entries:
    """All entries of both maps."""
    entries = Entries(maps)
    entries.load()
    return entries


def namespaces_of(
    directories: Iterable[Path], *, pods: bool = True, left_out: list[Path] | None = None
) -> Iterator[NetNS]:
    """The caller's namespace, and with `pods` all others."""
    for netns in network_namespaces(directories, left_out=left_out):
        yield netns
        if not pods:
            return


def listed_protocols(protocols: Iterable[int] = PROTOCOLS) -> list[int]:
    """Return the protocols whose sockets this kernel lists. Raises: NetlinkError."""
    with SocketDiag() as diag:
        return [protocol for protocol in protocols if diag.can_list(protocol)]


def translated(
    entries: Entries, namespaces: Iterable[NetNS], protocols: Iterable[int] = PROTOCOLS
) -> Iterator[tuple[SocketDiag, Translated]]:
    """Each connected socket that has an entry, with the means to destroy it.

    Ends early when every entry was met: a cookie is in one namespace only.
    Raises: SocketsUnlisted for a protocol that is not among `listed_protocols`, NetlinkError.
    """
    left = len(entries)
    for netns in namespaces:
        if not left:
            return
        with SocketDiag(netns) as diag:
            for found in _sockets(diag, protocols, CONNECTED):
                met = entries.of(found)
                if met is not None:
                    left -= 1
                    yield diag, met


def dead_keys(entries: Entries, namespaces: Iterable[NetNS]) -> set[bytes]:
    """Keys of sockets that are in none of the namespaces.

    A socket that is being connected right now may be among them: it has its entry before it is
    listed. What is dead stays dead, so ask twice. Raises: as `translated`.
    """
    cookies = entries.cookies()
    for netns in namespaces:
        if not cookies:
            break
        with SocketDiag(netns) as diag:
            for found in _sockets(diag, PROTOCOLS, ALL_STATES):
                cookies.pop(found.cookie, None)
    return {key for keys in cookies.values() for key in keys}


class Use(NamedTuple):
    """A frontend as it is dialled and one of its backends: (packed address, port) each."""

    protocol: int
    frontend: tuple[bytes, int]
    backend: tuple[bytes, int]


def count_connections(maps: LBMaps, namespaces: Iterable[NetNS]) -> Counter[Use]:
    """Open connections through Services, from the sockets of this node alone.

    What comes in by node ports and load balancer addresses is in the conntrack table.
    Raises: as `translated`.
    """
    return Counter(
        Use(
            met.socket.protocol,
            (met.way.value.address, met.way.value.port),
            (met.way.key.address, met.way.key.port),
        )
        for _, met in translated(read_entries(maps), namespaces)
    )


class BackendConnections:
    """How many open sockets of this node use a backend through a Service; to be called in a thread.

    As `draining-backends` wants it; `BackendFlows` counts what is no socket of this node.
    """

    def __init__(self, maps: LBMaps, directories: tuple[Path, ...] = DIRECTORIES) -> None:
        self._maps, self._directories = maps, directories

    def __call__(self, backends: Collection[L3n4Addr]) -> dict[L3n4Addr, int] | None:
        """One number for each that was asked for, in one look at the sockets for all.

        None if the kernel does not list the sockets. Raises: NetlinkError.
        """
        if listed_protocols() != list(PROTOCOLS):
            return None
        counts = dict.fromkeys(backends, 0)
        places = {addr.packed_place for addr in backends}
        entries = Entries(self._maps)
        entries.load(lambda key, _: backend_of(key) in places)
        for _, met in translated(entries, network_namespaces(self._directories)):
            address = address_of(met.way.key.address, met.way.key.port, met.socket.protocol)
            if address in counts:
                counts[address] += 1
        return counts


def backend_of(raw_key: bytes) -> bytes:
    """The place in a key of a socket map."""
    return raw_key[_BACKEND4 if len(raw_key) == _KEY4_BYTES else _BACKEND6]


def frontend_of(raw_value: bytes) -> bytes:
    """The place in a value of a socket map."""
    return raw_value[_FRONTEND4 if len(raw_value) == _VALUE4_BYTES else _FRONTEND6]


def address_of(ip: bytes, port: int, protocol: int, scope: int = SCOPE_EXTERNAL) -> L3n4Addr:
    """The address that tables have for a packed one; `protocol` is that of IP, TCP or UDP."""
    return L3n4Addr.of(mapped_ip(ip), port, PROTOCOL_NAMES[protocol], scope)


def _sockets(diag: SocketDiag, protocols: Iterable[int], states: int) -> Iterator[Socket]:
    """Listed whole before the caller may ask the same netlink socket for something else."""
    for protocol in protocols:
        yield from list(diag.sockets(socket.AF_INET, protocol, states))
        try:
            yield from list(diag.sockets(socket.AF_INET6, protocol, states))
        except SocketsUnlisted:
            continue  # a kernel without IPv6

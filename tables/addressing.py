# SPDX-License-Identifier: Apache-2.0
"""Value types that are keys: an IP address, a load-balancer address, the name of a service.

Each is a subclass of ``bytes`` or ``str`` whose own ordering is the ordering of the tables, so that
an address needs no separate key and compares at the speed of the built-in type. IPv4 is kept as
v4-mapped IPv6 (RFC 4291 2.5.5.2), which puts ``::`` first, then all IPv4, then all other IPv6.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    inet_ntop,
    inet_pton,
)
from typing import Final, Literal

Protocol = Literal["TCP", "UDP", "SCTP", "ANY"]

SCOPE_EXTERNAL: Final = 0
SCOPE_INTERNAL: Final = 1

#: What an IPv4 address begins with.
V4_PREFIX: Final = b"\0" * 10 + b"\xff\xff"

#: Where the parts of an `L3n4Addr` stand, for code that looks at a million of them: a property
#: costs it a call. What follows the port is protocol and scope.
AT_IP: Final = slice(16)
AT_IPV4: Final = slice(12, 16)
AT_CLUSTER_ID: Final = slice(16, 20)
AT_PORT: Final = slice(20, 22)
AT_TAIL: Final = slice(22, 24)
AT_PROTOCOL: Final = 22
AT_SCOPE: Final = 23

_V6_COMPATIBLE: Final = b"\0" * 12

_PROTOCOL_BYTES: Final[dict[str, bytes]] = {"TCP": b"T", "UDP": b"U", "SCTP": b"S", "ANY": b"?"}
_PROTOCOLS: Final[dict[int, Protocol]] = {84: "TCP", 85: "UDP", 83: "SCTP", 63: "ANY"}
#: Number of each protocol, 0 for ANY, by its letter in an address.
PROTOCOL_NUMBERS: Final = {84: int(IPPROTO_TCP), 85: int(IPPROTO_UDP), 83: int(IPPROTO_SCTP), 63: 0}
# The last two bytes of an address, made once: protocol letter and scope.
_TAILS: Final = {
    (proto, scope): letter + bytes((scope,))
    for proto, letter in _PROTOCOL_BYTES.items()
    for scope in (SCOPE_EXTERNAL, SCOPE_INTERNAL)
}
#: Number of the protocol and scope, by the last two bytes of an address.
TAILS: Final = {tail: (PROTOCOL_NUMBERS[tail[0]], tail[1]) for tail in _TAILS.values()}


class IP(bytes):
    """An IP address as its 16 bytes in network order, IPv4 as ``::ffff:a.b.c.d``.

    >>> str(IP.parse("10.0.0.1")), str(IP.parse("2001:0:0::1"))
    ('10.0.0.1', '2001::1')
    >>> IP.parse("::") < IP.parse("255.0.0.1") < IP.parse("2001::1")
    True
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> IP:
        """Raises ValueError for anything but one plain address (no zone, no prefix)."""
        return cls(pack_ip(text))

    @classmethod
    def from_packed(cls, packed: bytes) -> IP:
        """From 4 or 16 bytes in network order."""
        return cls(mapped_ip(packed))

    @property
    def is_ipv6(self) -> bool:
        return not self.startswith(V4_PREFIX)

    @property
    def is_unspecified(self) -> bool:
        return self in (_UNSPECIFIED_V4, _UNSPECIFIED_V6)

    @property
    def is_loopback(self) -> bool:
        return self == _LOOPBACK_V6 or (not self.is_ipv6 and self[12] == 127)

    @property
    def packed(self) -> bytes:
        """4 or 16 bytes in network order."""
        return self[12:] if self.startswith(V4_PREFIX) else bytes(self)

    @property
    def bits(self) -> int:
        """32 or 128: the length of the prefix that is this address alone."""
        return 128 if self.is_ipv6 else 32

    def __str__(self) -> str:
        return unpack_ip(self)

    def __repr__(self) -> str:
        return f"IP({str(self)!r})"


def special_use(packed: bytes) -> str:
    """Return what an address (4 or 16 bytes) is that can be nobody's service and no endpoint, or
    nothing. Kubernetes has the same list, ValidateNonSpecialIP.
    """
    if len(packed) == 16:
        if not packed.startswith(V4_PREFIX):
            return _special_use6(packed)
        packed = packed[12:]
    first = packed[0]
    if 0 < first < 127 or 127 < first < 169 or 169 < first < 224:
        return ""
    if first == 169:
        return "a link-local address" if packed[1] == 254 else ""
    if first == 127:
        return "a loopback address"
    if first == 0:
        return "" if any(packed) else "the unspecified address"
    if packed == b"\xff" * 4:
        return "the broadcast address"
    return "a multicast address" if first < 240 else ""


def _special_use6(packed: bytes) -> str:
    first = packed[0]
    if first == 0xFF:
        return "a multicast address"
    if first == 0xFE:
        return "a link-local address" if packed[1] & 0xC0 == 0x80 else ""
    if first or packed[:15] != bytes(15):
        return ""
    return {0: "the unspecified address", 1: "a loopback address"}.get(packed[15], "")


class Prefix(bytes):
    """A prefix as 17 bytes: the 16 of its address, then its length in its own family.

    >>> prefix = Prefix.parse("10.0.0.0/8")
    >>> str(prefix), prefix.length, prefix.is_ipv6, prefix.contains(IP.parse("10.1.2.3"))
    ('10.0.0.0/8', 8, False, True)
    >>> prefix.packed, len(Prefix.parse("fd00::/8").packed)
    (b'\\n\\x00\\x00\\x00', 16)
    >>> Prefix.parse("::/0") < Prefix.parse("0.0.0.0/0") < Prefix.parse("2001::/16")
    True
    """

    __slots__ = ()

    @classmethod
    def of(cls, ip: IP, length: int) -> Prefix:
        """Bits behind the length must be zero already; they are not looked at."""
        return cls(ip + bytes((length,)))

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """``ADDRESS/LENGTH``; a bare address is a prefix of full length; host bits are cleared.
        Mapped ones are of IPv4, as mapped addresses are.

        Raises ValueError when the text is no prefix.

        >>> str(Prefix.parse("::ffff:10.0.0.0/104"))
        '10.0.0.0/8'
        """
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is not a prefix") from None
        ip, length = IP.from_packed(network.network_address.packed), network.prefixlen
        is_mapped = network.version == 6 and not ip.is_ipv6
        return cls.of(ip, length - 96 if is_mapped else length)

    @property
    def ip(self) -> IP:
        return IP(self[:16])

    @property
    def packed(self) -> bytes:
        """Its address, 4 or 16 bytes in network order."""
        return self[AT_IPV4] if self.startswith(V4_PREFIX) else self[AT_IP]

    @property
    def length(self) -> int:
        return self[16]

    @property
    def is_ipv6(self) -> bool:
        return not self.startswith(V4_PREFIX)

    @property
    def is_host(self) -> bool:
        """True where the prefix is one address."""
        return self[16] == (128 if self.is_ipv6 else 32)

    def contains(self, ip: IP) -> bool:
        """Whether the address is of the same family and lies in the prefix."""
        if ip.is_ipv6 != self.is_ipv6:
            return False
        free = (128 if self.is_ipv6 else 32) - self[16]
        return (int.from_bytes(self[:16], "big") ^ int.from_bytes(ip, "big")) >> free == 0

    def __str__(self) -> str:
        return f"{unpack_ip(self)}/{self[16]}"

    def __repr__(self) -> str:
        return f"Prefix({str(self)!r})"


def mapped_ip(packed: bytes) -> bytes:
    """The 16 bytes of an ``IP``, from 4 or 16 in network order."""
    return V4_PREFIX + packed if len(packed) == 4 else packed


def pack_ip(text: str) -> bytes:
    """The 16 bytes of an address. Raises ValueError with the text in the message."""
    try:
        if ":" in text:
            return inet_pton(AF_INET6, text)
        return V4_PREFIX + inet_pton(AF_INET, text)
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{text!r} is not an IP address") from None


def unpack_ip(packed: bytes) -> str:
    """The canonical text (RFC 5952) of the first 16 bytes.

    The C library writes ``::102:304`` as ``::1.2.3.4``; tables and dumps want the former.
    """
    if packed[:12] == V4_PREFIX:
        return inet_ntop(AF_INET, packed[12:16])
    if packed[:12] == _V6_COMPATIBLE:
        return str(ipaddress.IPv6Address(packed[:16]))
    return inet_ntop(AF_INET6, packed[:16])


_UNSPECIFIED_V4: Final = pack_ip("0.0.0.0")
_UNSPECIFIED_V6: Final = pack_ip("::")
_LOOPBACK_V6: Final = pack_ip("::1")
_SURROGATES: Final = (_UNSPECIFIED_V4, _UNSPECIFIED_V6)


class L3n4Addr(bytes):
    """Address, cluster, port, protocol and scope of a frontend or backend; the object is its own
    key.

    24 bytes: address 16, cluster id 4 (big endian), port 2 (big endian), protocol letter 1
    (``S`` < ``T`` < ``U``, ``?`` for ANY), scope 1 (0 external, 1 internal).

    >>> addr = L3n4Addr.parse("10.0.0.1:80/TCP")
    >>> str(addr), addr.ip, addr.port, addr.protocol, len(addr)
    ('10.0.0.1:80/TCP', IP('10.0.0.1'), 80, 'TCP', 24)
    >>> str(L3n4Addr.of("2001::1", 53, "UDP", SCOPE_INTERNAL))
    '[2001::1]:53/UDP/i'
    >>> L3n4Addr.of("10.0.0.1", 80, "TCP") < L3n4Addr.of("10.0.0.1", 443, "SCTP")
    True
    >>> L3n4Addr.parse("0.0.0.0:30080/TCP").is_surrogate
    True
    """

    __slots__ = ()

    @classmethod
    def of(
        cls,
        ip: str | bytes,
        port: int,
        protocol: str,
        scope: int = SCOPE_EXTERNAL,
        cluster_id: int = 0,
    ) -> L3n4Addr:
        """``ip`` is text or the 16 bytes of an ``IP``.

        Raises ValueError for a bad address, protocol or scope, OverflowError for a port above
        65535.
        """
        packed = pack_ip(ip) if isinstance(ip, str) else ip
        return cls(packed + _after_ip(port, protocol, scope, cluster_id))

    @classmethod
    def parse(cls, text: str) -> L3n4Addr:
        """Reads the printed form. Raises ValueError when a part is missing or wrong."""
        key = parse_address_key(text)
        if len(key) != 24:
            raise ValueError(f"{text!r} is not ADDRESS:PORT/PROTOCOL")
        return cls(key)

    @property
    def ip(self) -> IP:
        return IP(self[AT_IP])

    @property
    def cluster_id(self) -> int:
        return int.from_bytes(self[AT_CLUSTER_ID], "big")

    @property
    def port(self) -> int:
        return self[20] << 8 | self[21]

    @property
    def protocol(self) -> Protocol:
        return _PROTOCOLS[self[AT_PROTOCOL]]

    @property
    def scope(self) -> int:
        return self[AT_SCOPE]

    @property
    def packed_place(self) -> bytes:
        """Address and port as 6 or 18 bytes in network order."""
        return self[AT_IPV4 if self.startswith(V4_PREFIX) else AT_IP] + self[AT_PORT]

    @property
    def is_ipv6(self) -> bool:
        return not self.startswith(V4_PREFIX)

    @property
    def is_surrogate(self) -> bool:
        """True for ``0.0.0.0`` and ``::``, which stand for every node address."""
        return self.startswith(_SURROGATES)

    def with_ip(self, ip: IP) -> L3n4Addr:
        """The same port, protocol and scope on another address."""
        return L3n4Addr(bytes(ip) + self[16:])

    def with_scope(self, scope: int) -> L3n4Addr:
        return L3n4Addr(self[:23] + bytes((scope,)))

    @property
    def address_and_port(self) -> str:
        """``10.0.0.1:80`` or ``[2001::1]:80``, without protocol and scope."""
        ip = unpack_ip(self)
        cluster = f"@{self.cluster_id}" if self.cluster_id else ""
        return f"[{ip}{cluster}]:{self.port}" if ":" in ip else f"{ip}{cluster}:{self.port}"

    def __str__(self) -> str:
        suffix = "/i" if self[AT_SCOPE] == SCOPE_INTERNAL else ""
        return f"{self.address_and_port}/{self.protocol}{suffix}"

    def __repr__(self) -> str:
        return f"L3n4Addr({str(self)!r})"


@lru_cache(4096)
def _after_ip(port: int, protocol: str, scope: int, cluster_id: int) -> bytes:
    """The last 8 bytes of an address; kept, since the same few come again and again."""
    tail = _TAILS.get((protocol, scope))
    if tail is None:
        raise ValueError(f"{protocol!r} scope {scope} is no protocol and scope")
    return cluster_id.to_bytes(4, "big") + port.to_bytes(2, "big") + tail


def parse_address_key(text: str) -> bytes:
    """The key, or the leading part of a key, that a text stands for.

    A whole address gives all 24 bytes; an address without protocol or without port gives the
    prefix that all such addresses share.

    >>> len(parse_address_key("10.0.0.1")), len(parse_address_key("[::1]:80"))
    (16, 22)
    >>> parse_address_key("10.0.0.1:80/TCP") == L3n4Addr.of("10.0.0.1", 80, "TCP")
    True

    Raises ValueError when the text is neither.
    """
    endpoint, _, rest = text.partition("/")
    host, port = _split_host_port(endpoint)
    host, _, cluster = host.partition("@")
    key = pack_ip(host)
    if not port:
        if rest or cluster:
            raise ValueError(f"{text!r} has no port")
        return key
    key += _number(cluster or "0", 0xFFFFFFFF, text).to_bytes(4, "big")
    key += _number(port, 0xFFFF, text).to_bytes(2, "big")
    if not rest:
        return key
    protocol, _, scope = rest.partition("/")
    tail = _TAILS.get((protocol.upper(), SCOPE_INTERNAL if scope == "i" else SCOPE_EXTERNAL))
    if tail is None or scope not in ("", "i"):
        raise ValueError(
            f"{text!r} does not end in /TCP, /UDP, /SCTP or /ANY, with /i for internal"
        )
    return L3n4Addr(key + tail)


def _split_host_port(text: str) -> tuple[str, str]:
    """Splits ``[v6]:port``, ``v4:port`` and a bare address of either family."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} is not [ADDRESS]:PORT")
        return host, port[1:]
    if text.count(":") > 1:
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def _number(digits: str, limit: int, text: str) -> int:
    if not (digits.isascii() and digits.isdigit()) or int(digits) > limit:
        raise ValueError(f"{digits!r} in {text!r} is not a number up to {limit}")
    return int(digits)


class ServiceName(str):
    """``namespace/name``, for a remote cluster ``cluster/namespace/name``.

    >>> name = ServiceName.of("kube-system", "dns")
    >>> name, name.namespace, name.name, name.cluster
    ('kube-system/dns', 'kube-system', 'dns', '')
    >>> ServiceName.parse("east/test/echo").cluster
    'east'
    """

    __slots__ = ()

    @classmethod
    def of(cls, namespace: str, name: str, cluster: str = "") -> ServiceName:
        return cls(f"{cluster}/{namespace}/{name}" if cluster else f"{namespace}/{name}")

    @classmethod
    def parse(cls, text: str) -> ServiceName:
        """Raises ValueError when the text has not two or three non-empty parts."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(f"{text!r} is not [CLUSTER/]NAMESPACE/NAME")
        return cls(text)

    @property
    def cluster(self) -> str:
        return self.split("/", 1)[0] if self.count("/") > 1 else ""

    @property
    def namespace(self) -> str:
        return self.split("/")[-2]

    @property
    def name(self) -> str:
        return self.rsplit("/", 1)[-1]

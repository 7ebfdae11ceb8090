# SPDX-License-Identifier: Apache-2.0
"""The load-balancer maps: codecs of ``bpf/lib/lb_types.h`` and the set of maps.

Addresses are 4 or 16 packed bytes (``ipaddress…packed``), ports and ids plain numbers; the codecs
put ports into network byte order and everything else into the order of the host. ``decode_…``
returns named fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum, IntEnum, IntFlag
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bpf.maps.fake import FakeMap, FakeTableMap
from bpf.maps.raw import RawMap

if TYPE_CHECKING:
    from bpf.maps.map import Map

_U16_BE = Struct("!H")


class Scope(IntEnum):
    EXTERNAL = 0
    INTERNAL = 1


class ServiceType(IntEnum):
    """Why a frontend exists."""

    CLUSTER_IP = 0
    NODE_PORT = 1
    EXTERNAL_IPS = 2
    LOAD_BALANCER = 3
    HOST_PORT = 4
    LOCAL_REDIRECT = 5


class Algorithm(IntEnum):
    UNDEF = 0
    RANDOM = 1
    MAGLEV = 2
    LEAST_CONNECTIONS = 3

    @classmethod
    def named(cls, option: str) -> Algorithm:
        """By the value of an option, such as ``least-connections``. Raises: KeyError."""
        return cls[option.replace("-", "_").upper()]

    @property
    def label(self) -> str:
        """As options have it."""
        return self.name.replace("_", "-").lower()


class SourceMeaning(IntEnum):
    """Meaning of a source range; an earlier version wrote none."""

    EITHER = 0
    LET_IN = 1
    KEPT_OUT = 2


class ServiceFlag(IntFlag):
    """``LB_SVC_*``, in the order in which the map dump prints them."""

    NONE = 0
    EXT_LOCAL = 0x0001
    INT_LOCAL = 0x0002
    TWO_SCOPES = 0x0004
    AFFINITY = 0x0008
    NON_ROUTABLE = 0x0010
    SOURCE_RANGE = 0x0020
    SOURCE_DENY = 0x0040
    TRANSLATE_46X64 = 0x0080
    L7 = 0x0100
    LOOPBACK = 0x0200
    DELEGATE = 0x0400
    QUARANTINED = 0x0800
    DSR = 0x1000
    SOURCE_INSIDE = 0x2000
    SOURCE_NOT_NODE = 0x4000


class BackendState(IntEnum):
    ACTIVE = 0
    TERMINATING = 1
    QUARANTINED = 2
    MAINTENANCE = 3


class ServiceKey(msgspec.Struct, frozen=True):
    """Key of ``cilia_lb4_svc`` (12 bytes) and ``cilia_lb6_svc`` (24 bytes)."""

    address: bytes
    port: int
    slot: int
    proto: int
    scope: int


class ServiceValue(msgspec.Struct, frozen=True):
    """Value of the service maps, 28 bytes. Which fields mean something depends on the slot."""

    backend_id: int = 0
    rev_nat: int = 0
    affinity_timeout_s: int = 0
    flags: int = 0
    count: int = 0
    qcount: int = 0
    l7_port: int = 0
    weight: int = 0
    type: int = 0
    algorithm: int = 0


class BackendValue(msgspec.Struct, frozen=True):
    """Value of ``cilia_lb4_be`` (16 bytes) and ``cilia_lb6_be`` (28 bytes)."""

    address: bytes
    port: int
    proto: int
    state: int = BackendState.ACTIVE
    cluster_id: int = 0
    zone: int = 0
    flags: int = 0


class RevNatValue(msgspec.Struct, frozen=True):
    """Value of ``cilia_lb4_rev`` (8 bytes) and ``cilia_lb6_rev`` (20 bytes)."""

    address: bytes
    port: int


class SocketKey(msgspec.Struct, frozen=True):
    """Key of ``cilia_lb4_sk`` (16 bytes) and ``cilia_lb6_sk`` (32 bytes)."""

    cookie: int
    address: bytes
    port: int


class SocketValue(msgspec.Struct, frozen=True):
    """Value of the socket maps: the frontend that was dialled."""

    address: bytes
    port: int
    rev_nat: int


class AffinityKey(msgspec.Struct, frozen=True):
    """Key of ``cilia_lb4_aff`` (16 bytes) and ``cilia_lb6_aff`` (24 bytes): who, at which frontend.

    ``client`` is an address, or 8 bytes of a network namespace's cookie in host order.
    """

    client: bytes
    rev_nat: int
    is_netns: bool = False


class Affinity(msgspec.Struct, frozen=True):
    """Value of the affinity maps, 16 bytes; the time is that of the monotonic clock."""

    last_used_ns: int
    backend_id: int


class AffinityMatch(msgspec.Struct, frozen=True):
    """Key of ``cilia_lb4_affm`` and ``cilia_lb6_affm``, 8 bytes."""

    backend_id: int
    rev_nat: int


class SourceRange(msgspec.Struct, frozen=True):
    """Key of ``cilia_lb4_src`` (12 bytes) and ``cilia_lb6_src`` (24 bytes)."""

    rev_nat: int
    address: bytes
    length: int


ID = Struct("=I")
PRESENT = bytes(4)
SERVICE_VALUE = Struct("=IIIIHH2sHBBxx")


class Family(NamedTuple):
    """The structs of one address family."""

    address_bytes: int
    service_key: Struct
    backend_value: Struct
    rev_nat_value: Struct
    socket_key: Struct
    socket_value: Struct
    affinity_key: Struct
    source_key: Struct


AFFINITY_VALUE = Struct("=QIxxxx")
AFFINITY_MATCH = Struct("=II")

IPV4 = Family(
    4,
    Struct("=4s2sHBBxx"),
    Struct("=4s2sBBIBBxx"),
    Struct("=4s2sxx"),
    Struct("=Q4s2sxx"),
    Struct("=4s2sxxI"),
    Struct("=8sII"),
    Struct("=II4s"),
)
IPV6 = Family(
    16,
    Struct("=16s2sHBBxx"),
    Struct("=16s2sBBIBBxx"),
    Struct("=16s2sxx"),
    Struct("=Q16s2sxxxxxx"),
    Struct("=16s2sxxI"),
    Struct("=16sII"),
    Struct("=II16s"),
)


def family_of(address: bytes) -> Family:
    """The family of a packed address. Raises: ValueError for anything but 4 or 16 bytes."""
    if len(address) == 4:
        return IPV4
    if len(address) == 16:
        return IPV6
    raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")


def encode_port(port: int) -> bytes:
    """Two bytes in network order."""
    return _U16_BE.pack(port)


def decode_port(raw: bytes) -> int:
    """A port from two bytes in network order."""
    return (raw[0] << 8) | raw[1]


def encode_id(number: int) -> bytes:
    """Key of the backend and reverse maps."""
    return ID.pack(number)


def decode_id(raw: bytes) -> int:
    """The id in a key of the backend and reverse maps."""
    return int(ID.unpack(raw)[0])


def encode_service_key(
    address: bytes, port: int, slot: int = 0, proto: int = 0, scope: int = Scope.EXTERNAL
) -> bytes:
    return family_of(address).service_key.pack(address, _U16_BE.pack(port), slot, proto, scope)


def decode_service_key(raw: bytes) -> ServiceKey:
    family = IPV4 if len(raw) == IPV4.service_key.size else IPV6
    address, port, slot, proto, scope = family.service_key.unpack(raw)
    return ServiceKey(address, decode_port(port), slot, proto, scope)


def encode_service(value: ServiceValue) -> bytes:
    return SERVICE_VALUE.pack(
        value.backend_id,
        value.rev_nat,
        value.affinity_timeout_s,
        value.flags,
        value.count,
        value.qcount,
        _U16_BE.pack(value.l7_port),
        value.weight,
        value.type,
        value.algorithm,
    )


def decode_service(raw: bytes) -> ServiceValue:
    backend_id, rev_nat, timeout_s, flags, count, qcount, l7_port, weight, kind, algorithm = (
        SERVICE_VALUE.unpack(raw)
    )
    return ServiceValue(
        backend_id,
        rev_nat,
        timeout_s,
        flags,
        count,
        qcount,
        decode_port(l7_port),
        weight,
        kind,
        algorithm,
    )


def encode_backend(value: BackendValue) -> bytes:
    return family_of(value.address).backend_value.pack(
        value.address,
        _U16_BE.pack(value.port),
        value.proto,
        value.state,
        value.cluster_id,
        value.zone,
        value.flags,
    )


def decode_backend(raw: bytes) -> BackendValue:
    family = IPV4 if len(raw) == IPV4.backend_value.size else IPV6
    address, port, *rest = family.backend_value.unpack(raw)
    return BackendValue(address, decode_port(port), *rest)


def with_any_protocol(map_name: str, key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """An entry of the map of this name as if its protocol were not told apart from others."""
    if map_name.endswith("_svc"):
        found = decode_service_key(key)
        key = encode_service_key(found.address, found.port, found.slot, 0, found.scope)
    elif map_name.endswith("_be"):
        value = encode_backend(msgspec.structs.replace(decode_backend(value), proto=0))
    return key, value


def encode_rev_nat(value: RevNatValue) -> bytes:
    return family_of(value.address).rev_nat_value.pack(value.address, _U16_BE.pack(value.port))


def decode_rev_nat(raw: bytes) -> RevNatValue:
    family = IPV4 if len(raw) == IPV4.rev_nat_value.size else IPV6
    address, port = family.rev_nat_value.unpack(raw)
    return RevNatValue(address, decode_port(port))


def encode_socket_key(value: SocketKey) -> bytes:
    return family_of(value.address).socket_key.pack(
        value.cookie, value.address, _U16_BE.pack(value.port)
    )


def decode_socket_key(raw: bytes) -> SocketKey:
    family = IPV4 if len(raw) == IPV4.socket_key.size else IPV6
    cookie, address, port = family.socket_key.unpack(raw)
    return SocketKey(cookie, address, decode_port(port))


def decode_socket(raw: bytes) -> SocketValue:
    family = IPV4 if len(raw) == IPV4.socket_value.size else IPV6
    address, port, rev_nat = family.socket_value.unpack(raw)
    return SocketValue(address, decode_port(port), rev_nat)


def encode_affinity_key(value: AffinityKey, family: Family) -> bytes:
    """``family`` is that of the frontend: a cookie does not tell."""
    return family.affinity_key.pack(value.client, value.rev_nat, value.is_netns)


def encode_affinity(value: Affinity) -> bytes:
    return AFFINITY_VALUE.pack(value.last_used_ns, value.backend_id)


def decode_affinity(raw: bytes) -> Affinity:
    return Affinity(*AFFINITY_VALUE.unpack(raw))


def encode_affinity_match(value: AffinityMatch) -> bytes:
    return AFFINITY_MATCH.pack(value.backend_id, value.rev_nat)


def decode_affinity_match(raw: bytes) -> AffinityMatch:
    return AffinityMatch(*AFFINITY_MATCH.unpack(raw))


def encode_source_range(value: SourceRange) -> bytes:
    bits = 32 + value.length
    return family_of(value.address).source_key.pack(bits, value.rev_nat, value.address)


def encode_source_meaning(denies: bool) -> bytes:
    return ID.pack(SourceMeaning.KEPT_OUT if denies else SourceMeaning.LET_IN)


def source_range_counts(value: bytes, denies: bool) -> bool:
    """Return True if a prefix was written with this meaning, or by a version that wrote none."""
    return value in (PRESENT, encode_source_meaning(denies))


def decode_source_range(raw: bytes) -> SourceRange:
    family = IPV4 if len(raw) == IPV4.source_key.size else IPV6
    bits, rev_nat, address = family.source_key.unpack(raw)
    return SourceRange(rev_nat, address, bits - 32)


class Kind(Enum):
    """How a map is made."""

    HASH = "hash"
    LRU = "lru"
    LPM = "lpm"
    TABLES = "tables"


class Spec(NamedTuple):
    """Name, sizes and kind of one of the maps."""

    name: str
    key_size: int
    value_size: int
    kind: Kind = Kind.HASH


def _family_specs(number: int, family: Family) -> list[Spec]:
    name = f"cilia_lb{number}"
    return [
        Spec(f"{name}_svc", family.service_key.size, SERVICE_VALUE.size),
        Spec(f"{name}_be", ID.size, family.backend_value.size),
        Spec(f"{name}_rev", ID.size, family.rev_nat_value.size),
        Spec(f"{name}_sk", family.socket_key.size, family.socket_value.size, Kind.LRU),
        Spec(f"{name}_aff", family.affinity_key.size, AFFINITY_VALUE.size, Kind.LRU),
        Spec(f"{name}_affm", AFFINITY_MATCH.size, len(PRESENT)),
        Spec(f"{name}_src", family.source_key.size, len(PRESENT), Kind.LPM),
        Spec(f"{name}_mglv", ID.size, 0, Kind.TABLES),
        Spec(f"{name}_s2z", ID.size, len(PRESENT)),
    ]


SPECS = [*_family_specs(4, IPV4), *_family_specs(6, IPV6)]

#: Default sizes. Entries of the first three kinds of map are allocated as they come; the room for
#: them costs 16 bytes of kernel memory each (a hash bucket).
SERVICE_ENTRIES = 1 << 17
SOCKET_ENTRIES = 1 << 16


class LBFamilyMaps(NamedTuple):
    """The maps of one address family."""

    service: RawMap
    backend: RawMap
    rev_nat: RawMap
    socket: RawMap
    affinity: RawMap
    affinity_match: RawMap
    source: RawMap
    # Values are tables, see ``bpf.maps.tables``.
    maglev: RawMap
    # Frontends that wake up by traffic, by their ids.
    scale_to_zero: RawMap


class LBMaps(NamedTuple):
    """All load-balancer maps; ``of(address)`` picks those of an address's family."""

    v4: LBFamilyMaps
    v6: LBFamilyMaps

    def of(self, address: bytes) -> LBFamilyMaps:
        return self.v4 if len(address) == 4 else self.v6

    def all(self) -> Iterator[RawMap]:
        yield from self.v4
        yield from self.v6

    def wrap(self, wrapper: Callable[[RawMap], RawMap]) -> LBMaps:
        """The same set with each map inside another, for example a ``FaultyMap``."""
        return LBMaps(LBFamilyMaps(*map(wrapper, self.v4)), LBFamilyMaps(*map(wrapper, self.v6)))

    def close(self) -> None:
        """Close those that are kernel maps; their contents stay while pinned or in use."""
        for raw in self.all():
            close = getattr(raw, "close", None)
            if close is not None:
                close()

    @classmethod
    def fake(cls, max_entries: int = SERVICE_ENTRIES) -> LBMaps:
        """Maps in memory."""
        return cls._build(
            lambda spec: (
                FakeTableMap(spec.name, spec.key_size, max_entries)
                if spec.kind is Kind.TABLES
                else FakeMap(spec.name, spec.key_size, spec.value_size, max_entries)
            )
        )

    @classmethod
    def create(
        cls, max_entries: int = SERVICE_ENTRIES, socket_entries: int = SOCKET_ENTRIES
    ) -> LBMaps:
        """New kernel maps without pins. Raises: NoPrivilege, NoMemory."""
        return cls._build(lambda spec: _create(spec, max_entries, socket_entries))

    @classmethod
    def open_pinned(cls, directory: Path) -> LBMaps:
        """The kernel maps pinned below ``directory`` by their names. Raises: NotFound."""
        from bpf.maps.map import Map

        return cls._build(lambda spec: _as_raw(spec, Map.open_pinned(directory / spec.name)))

    @classmethod
    def over(cls, maps: Mapping[str, Map]) -> LBMaps:
        """Maps that are open already, by name, each under a second descriptor."""
        return cls._build(lambda spec: _as_raw(spec, maps[spec.name].duplicate()))

    @classmethod
    def _build(cls, make: Callable[[Spec], RawMap]) -> LBMaps:
        made: list[RawMap] = []
        try:
            for spec in SPECS:
                made.append(make(spec))  # noqa: PERF401  (what was made is closed on failure)
        except BaseException:
            for raw in made:
                getattr(raw, "close", lambda: None)()
            raise
        half = len(LBFamilyMaps._fields)
        return cls(LBFamilyMaps(*made[:half]), LBFamilyMaps(*made[half:]))


def _as_raw(spec: Spec, opened: Map) -> RawMap:
    from bpf.maps.tables import TableMap

    return TableMap(opened) if spec.kind is Kind.TABLES else opened


def _create(spec: Spec, max_entries: int, socket_entries: int) -> RawMap:
    from bpf.maps.map import Map
    from bpf.maps.tables import TableMap
    from bpf.maps.types import MapFlag, MapType

    if spec.kind is Kind.TABLES:
        return TableMap.create(spec.name, max_entries)
    if spec.kind is Kind.LRU:
        return Map.create(
            MapType.LRU_HASH, spec.name, spec.key_size, spec.value_size, socket_entries
        )
    return Map.create(
        MapType.LPM_TRIE if spec.kind is Kind.LPM else MapType.HASH,
        spec.name,
        spec.key_size,
        spec.value_size,
        max_entries,
        flags=MapFlag.NO_PREALLOC,
    )

# SPDX-License-Identifier: Apache-2.0
"""The load-balancer maps: codecs of ``bpf/lib/lb_types.h`` and the set of maps.

Addresses are 4 or 16 packed bytes (``ipaddress…packed``), ports and ids plain numbers; the codecs
put ports into network byte order and everything else into the order of the host. ``decode_…``
returns named fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from operator import itemgetter
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bpf.layout import header
from bpf.maps.fake import FakeMap, FakeTableMap
from bpf.maps.lb_numbers import EntryState, Scope, SourceMeaning
from bpf.maps.raw import RawMap

if TYPE_CHECKING:
    from bpf.maps.map import Map

_HEADER = header("lb_types.h")
_U16_BE = Struct("!H")


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
    owner: int = 0


class BackendValue(msgspec.Struct, frozen=True):
    """Value of ``cilia_lb4_be`` (16 bytes) and ``cilia_lb6_be`` (28 bytes)."""

    address: bytes
    port: int
    proto: int
    state: int = EntryState.ACTIVE
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


ID = _HEADER.struct("lb_backend_key")
PRESENT = bytes(_HEADER.struct("lb_present").size)
SERVICE_VALUE = _HEADER.struct("lb_service")


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
    # Where the slot stands in a key of the service map.
    slot: slice
    # Address and port of the backend in a key of the socket map, and of the frontend in its value.
    socket_backend: slice
    socket_frontend: slice


AFFINITY_VALUE = _HEADER.struct("lb_affinity")
AFFINITY_MATCH = _HEADER.struct("lb_affinity_match_key")

_SERVICE = _HEADER.places("lb_service")
_MATCH = _HEADER.places("lb_affinity_match_key")
_Cut = Callable[[bytes], bytes]

# Each cuts one id from packed bytes. They are no slices: compiled by mypyc, `raw[place]` of bytes
# wants a number.
#: From a value of the service map.
service_backend_id: _Cut = itemgetter(_SERVICE["backend_id"])
service_rev_nat: _Cut = itemgetter(_SERVICE["rev_nat"])
#: From a key of affinity matches; the frontend's also from one of source ranges.
match_backend_id: _Cut = itemgetter(_MATCH["backend_id"])
match_rev_nat: _Cut = itemgetter(_MATCH["rev_nat"])


def _family(number: int, address_bytes: int) -> Family:
    return Family(
        address_bytes,
        _HEADER.struct(f"lb{number}_key"),
        _HEADER.struct(f"lb{number}_backend"),
        _HEADER.struct(f"lb{number}_rev"),
        _HEADER.struct(f"sock{number}_key"),
        _HEADER.struct(f"sock{number}_value"),
        _HEADER.struct(f"lb{number}_affinity_key", raw=("client",)),
        _HEADER.struct(f"lb{number}_source_key"),
        _HEADER.places(f"lb{number}_key")["slot"],
        _address_and_port(f"sock{number}_key"),
        _address_and_port(f"sock{number}_value"),
    )


def _address_and_port(struct: str) -> slice:
    places = _HEADER.places(struct)
    return slice(places["address"].start, places["port"].stop)


IPV4 = _family(4, 4)
IPV6 = _family(6, 16)


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
        value.owner,
    )


def decode_service(raw: bytes) -> ServiceValue:
    backend_id, rev_nat, timeout_s, flags, count, qcount, l7_port, *rest = SERVICE_VALUE.unpack(raw)
    port = decode_port(l7_port)
    return ServiceValue(backend_id, rev_nat, timeout_s, flags, count, qcount, port, *rest)


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
    """Kinds of maps: each has its type and flags in the kernel."""

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

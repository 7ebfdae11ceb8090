# SPDX-License-Identifier: Apache-2.0
"""The map entries that one frontend wants: pure functions of its row, its ids and the settings.

Nothing here remembers or writes. Keys and values have the layout of `bpf/lib/lb_types.h`; the
structs of `bpf.maps.lb` are used directly where a field for each of a million entries would cost.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from ipaddress import ip_address
from struct import Struct
from typing import Final
from zlib import crc32

from bpf.maps.lb import (
    IPV4,
    IPV6,
    SERVICE_VALUE,
    decode_backend,
    decode_service_key,
    encode_port,
)
from bpf.maps.lb_numbers import Algorithm, EntryState, FrontendType, ServiceFlag
from bpf.maps.text import PROTOCOL_NAMES
from reconcilers.loadbalancer.frontend_config import FrontendConfig
from tables.addressing import (
    AT_CLUSTER_ID,
    AT_IP,
    AT_IPV4,
    AT_PORT,
    AT_PROTOCOL,
    AT_SCOPE,
    AT_TAIL,
    IP,
    PROTOCOL_NUMBERS,
    SCOPE_EXTERNAL,
    TAILS,
    V4_PREFIX,
    L3n4Addr,
    mapped_ip,
)
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.frontends import Frontend
from tables.loadbalancer.services import (
    ForwardingMode,
    ProxyDelegation,
    Service,
    SourceRangesPolicy,
    TrafficPolicy,
    is_on_some_nodes,
)


class Choice:
    """The backends of a frontend in the order of their ids, and those that get slots.

    Of `shown`, the first `healthy` are healthy and the first `used` are used; the others keep
    the connections that they have.
    """

    __slots__ = ("backends", "healthy", "shown", "used")

    def __init__(
        self, backends: Sequence[Backend], shown: Sequence[Backend], used: int, healthy: int
    ) -> None:
        self.backends = backends
        self.shown = shown
        self.used = used
        self.healthy = healthy


# Members of enumerations by name: looking one up, or hashing one, costs as much as a map entry.
_CLUSTER_IP = FrontendType.CLUSTER_IP
_LOAD_BALANCER = FrontendType.LOAD_BALANCER
_EXTERNAL_IPS = FrontendType.EXTERNAL_IPS
_HOST_PORT = FrontendType.HOST_PORT
_LOCAL_REDIRECT = FrontendType.LOCAL_REDIRECT
_EXTERNAL_TYPES = (FrontendType.NODE_PORT, _LOAD_BALANCER, _EXTERNAL_IPS)
_LOCAL = TrafficPolicy.LOCAL
_ACTIVE = BackendState.ACTIVE
_MAINTENANCE = BackendState.MAINTENANCE
_LOCAL_REDIRECT_ENTRY = FrontendType.LOCAL_REDIRECT.number
_CLUSTER_IP_ENTRY = FrontendType.CLUSTER_IP.number
_UNDEF_ALGORITHM = Algorithm.UNDEF
_UNDEF_MODE = ForwardingMode.UNDEF
_DELEGATE_IF_LOCAL = ProxyDelegation.DELEGATE_IF_LOCAL
_DENY = SourceRangesPolicy.DENY

_TYPES = {kind: kind.number for kind in FrontendType}
_STATE_OF = {
    BackendState.ACTIVE: EntryState.ACTIVE,
    BackendState.TERMINATING: EntryState.TERMINATING,
    BackendState.TERMINATING_NOT_SERVING: EntryState.TERMINATING,
    BackendState.QUARANTINED: EntryState.QUARANTINED,
    BackendState.MAINTENANCE: EntryState.MAINTENANCE,
    BackendState.INVALID: EntryState.MAINTENANCE,
}
_STATES = tuple(int(_STATE_OF[state]) for state in BackendState)
# What follows the slot in a key of either family; address and port come before it.
_TAILS = {
    tail: IPV4.service_key.pack(b"", b"", 0, number, scope)[IPV4.slot.stop :]
    for tail, (number, scope) in TAILS.items()
}
# What follows the address in the key of a wildcard entry of either family.
_ANY_SERVICE = IPV4.service_key.pack(b"", b"", 0, 0, SCOPE_EXTERNAL)[IPV4.address_bytes :]
_WILDCARD_CLASSES = (None, "io.cilium/bgp-control-plane", "io.cilium/l2-announcer")
# Bound here: compiled code looks up what it imports at each use, except for numbers.
_V4_PREFIX: Final = V4_PREFIX
_NUMBERS: Final = PROTOCOL_NUMBERS
_AT_IP: Final = AT_IP
_AT_IPV4: Final = AT_IPV4
_AT_CLUSTER_ID: Final = AT_CLUSTER_ID
_AT_PORT: Final = AT_PORT
_AT_TAIL: Final = AT_TAIL
NONE_QUARANTINED: frozenset[L3n4Addr] = frozenset()
_U16 = Struct("=H").pack
_NO_PORT = b"\0\0"

# Flags as plain numbers: an operation on IntFlag costs a microsecond.
_EXT_LOCAL = int(ServiceFlag.EXT_LOCAL)
_INT_LOCAL = int(ServiceFlag.INT_LOCAL)
_TWO_SCOPES = int(ServiceFlag.TWO_SCOPES)
_AFFINITY = int(ServiceFlag.AFFINITY)
_NON_ROUTABLE = int(ServiceFlag.NON_ROUTABLE)
_SOURCE_RANGE = int(ServiceFlag.SOURCE_RANGE)
_SOURCE_DENY = int(ServiceFlag.SOURCE_DENY)
_SOURCE_INSIDE = int(ServiceFlag.SOURCE_INSIDE)
_SOURCE_NOT_NODE = int(ServiceFlag.SOURCE_NOT_NODE)
_SOURCE_FLAGS = _SOURCE_RANGE | _SOURCE_DENY | _SOURCE_INSIDE | _SOURCE_NOT_NODE
_L7 = int(ServiceFlag.L7)
_LOOPBACK = int(ServiceFlag.LOOPBACK)
_DELEGATE = int(ServiceFlag.DELEGATE)
_QUARANTINED = int(ServiceFlag.QUARANTINED)
_DSR = int(ServiceFlag.DSR)


def packed_ip(addr: L3n4Addr) -> bytes:
    """Return the address alone: 4 or 16 bytes in network order."""
    return addr[_AT_IPV4] if addr.startswith(_V4_PREFIX) else addr[_AT_IP]


# -- ordering and counting of backends --


def choose(fe: Frontend, quarantined: frozenset[L3n4Addr] = NONE_QUARANTINED) -> Choice:
    """Order the backends: healthy first, then by state, then by address.

    Those in `quarantined` count as unhealthy until the first answer of a health check. Terminating
    backends are used if none is active; those in maintenance have no slot.
    """
    backends = fe.backends  # in address order
    if not quarantined and all(be.state is _ACTIVE and not be.unhealthy for be in backends):
        return Choice(backends, backends, len(backends), len(backends))
    # Sorting is stable: the order of addresses stays within equals.
    ranked = sorted((is_unhealthy(be, quarantined), be.state, i) for i, be in enumerate(backends))
    arranged = [backends[i] for _, _, i in ranked]
    shown = [be for be in arranged if be.state < _MAINTENANCE]
    states = [be.state for be in shown if not is_unhealthy(be, quarantined)]
    count = states.count(_ACTIVE) or states.count(BackendState.TERMINATING)
    return Choice(arranged, shown, count, len(states))


def is_unhealthy(be: Backend, quarantined: frozenset[L3n4Addr]) -> bool:
    return be.unhealthy or (be.unhealthy_updated_at is None and be.address in quarantined)


# -- flags --


def entry_type(fe: Frontend) -> int:
    """Return the `LB_TYPE_*` of the frontend's entries."""
    return _LOCAL_REDIRECT_ENTRY if fe.redirect_to is not None else plain_type(fe)


def plain_type(fe: Frontend) -> int:
    """The type of the frontend itself, redirected or not."""
    return _CLUSTER_IP_ENTRY if fe.type is _CLUSTER_IP else _TYPES[fe.type]


def is_programmed(fe: Frontend, config: FrontendConfig) -> bool:
    """Without kube-proxy's replacement only what it does not serve is programmed."""
    if config.kube_proxy_replacement:
        return True
    if fe.redirect_to is not None or fe.type in (
        FrontendType.CLUSTER_IP,
        FrontendType.LOCAL_REDIRECT,
        FrontendType.EXTERNAL_IPS,
    ):
        return True
    return fe.type is FrontendType.LOAD_BALANCER and config.tunnel


def master_flags(
    fe: Frontend, addr: L3n4Addr, config: FrontendConfig, node_addresses: Iterable[IP] = ()
) -> int:
    """`LB_SVC_*` of slot 0 of `addr`, the frontend's own address or one it is expanded to.

    `node_addresses` are those of this node, by which source ranges let it in.
    """
    svc, kind = fe.service, fe.type
    if fe.redirect_to is not None:
        kind = _LOCAL_REDIRECT
    flags = _policy_flags(svc, kind, config)
    if svc.affinity_timeout_s:
        flags |= _AFFINITY
    if (kind is _CLUSTER_IP and not config.bpf_lb_external_clusterip) or addr.is_surrogate:
        flags |= _NON_ROUTABLE
    if svc.source_ranges and (
        config.bpf_lb_source_range_all_types or kind in (_LOAD_BALANCER, _EXTERNAL_IPS)
    ):
        own = [ip for ip in node_addresses if ip.is_ipv6 is addr.is_ipv6]
        flags |= _source_flags(svc, config, own)
    if l7_port(fe):
        flags |= _L7
    if kind is _HOST_PORT and svc.loopback_host_port:
        flags |= _LOOPBACK
    if svc.proxy_delegation is _DELEGATE_IF_LOCAL:
        flags |= _DELEGATE
    if _is_dsr(fe, addr, config):
        flags |= _DSR
    return flags


def _policy_flags(svc: Service, kind: FrontendType, config: FrontendConfig) -> int:
    external = kind in _EXTERNAL_TYPES
    ext_local = external and svc.ext_traffic_policy is _LOCAL
    int_local = svc.int_traffic_policy is _LOCAL and (
        kind is _CLUSTER_IP or (external and config.bpf_lb_internal_policy_all_types)
    )
    flags = 0
    if ext_local:
        flags |= _EXT_LOCAL
    if int_local:
        flags |= _INT_LOCAL
    if ext_local is not int_local and kind is not _CLUSTER_IP:
        flags |= _TWO_SCOPES
    return flags


def _source_flags(svc: Service, config: FrontendConfig, node_addresses: Iterable[IP]) -> int:
    denies = svc.source_ranges_policy is _DENY
    flags = _SOURCE_RANGE | _SOURCE_DENY if denies else _SOURCE_RANGE
    if not config.bpf_lb_source_range_inside:
        return flags
    flags |= _SOURCE_INSIDE
    named = any(
        ip_address(ip.packed) in prefix for ip in node_addresses for prefix in svc.source_ranges
    )
    return flags | _SOURCE_NOT_NODE if named is denies else flags


def _is_dsr(fe: Frontend, addr: L3n4Addr, config: FrontendConfig) -> bool:
    """The backend's node answers in the name of a frontend that it knows: a service that only some
    nodes serve is translated. Which node ports it knows decide the programs, by packet.
    """
    svc, mode = fe.service, config.bpf_lb_mode
    direct = mode == "dsr" or (mode == "hybrid" and addr.protocol == "TCP")
    if config.bpf_lb_mode_annotation and svc.forwarding_mode is not _UNDEF_MODE:
        direct = svc.forwarding_mode is ForwardingMode.DSR
    return direct and not is_on_some_nodes(svc)


def algorithm(fe: Frontend, config: FrontendConfig) -> Algorithm:
    """The algorithm as written to the map: undef unless services may choose."""
    if not config.bpf_lb_algorithm_annotation:
        return _UNDEF_ALGORITHM
    return fe.service.algorithm or Algorithm.named(config.bpf_lb_algorithm)


def l7_port(fe: Frontend) -> int:
    """Port of the proxy that takes this frontend's traffic, 0 for none."""
    redirect = fe.service.proxy_redirect
    if redirect is None or not redirect.redirects(fe.service_port or fe.address.port):
        return 0
    return redirect.proxy_port


# -- keys and values --


class Keys:
    """Makes the keys of one address: everything but the slot is packed once."""

    __slots__ = ("head", "tail")

    def __init__(self, head: bytes, tail: bytes) -> None:
        self.head = head
        self.tail = tail

    def slot(self, number: int) -> bytes:
        return self.head + _U16(number) + self.tail


def service_keys(addr: L3n4Addr) -> Keys:
    """`.slot(n)` is the key of slot n in the service map: struct lb4_key or lb6_key."""
    return Keys(packed_ip(addr) + addr[_AT_PORT], _TAILS[addr[_AT_TAIL]])


def wildcard_key(addr: L3n4Addr) -> bytes:
    """Key of the entry for all ports and protocols of the address that no frontend has."""
    return packed_ip(addr) + _ANY_SERVICE


def service_address(raw_key: bytes) -> L3n4Addr:
    """The address in a key of a service map. Raises: ValueError for an unknown scope."""
    key = decode_service_key(raw_key)
    ip = mapped_ip(key.address)
    return L3n4Addr.of(ip, key.port, PROTOCOL_NAMES.get(key.proto, "ANY"), key.scope)


def backend_address(raw_value: bytes) -> L3n4Addr:
    """The address in a value of a backend map."""
    be = decode_backend(raw_value)
    ip = mapped_ip(be.address)
    protocol = PROTOCOL_NAMES.get(be.proto, "ANY")
    return L3n4Addr.of(ip, be.port, protocol, cluster_id=be.cluster_id)


def backend_value(addr: L3n4Addr, state: int) -> bytes:
    """Value of a backend map; `state` is that of `entry_state`."""
    packed = packed_ip(addr)
    layout = IPV4 if len(packed) == 4 else IPV6
    cluster_id = int.from_bytes(addr[_AT_CLUSTER_ID], "big")
    number = _NUMBERS[addr[AT_PROTOCOL]]
    return layout.backend_value.pack(packed, addr[_AT_PORT], number, state, cluster_id, 0, 0)


def entry_state(state: BackendState) -> int:
    """`LB_BE_*` of a backend in this state."""
    return _STATES[state]


def rev_nat_value(addr: L3n4Addr) -> bytes:
    packed = packed_ip(addr)
    layout = IPV4 if len(packed) == 4 else IPV6
    return layout.rev_nat_value.pack(packed, addr[_AT_PORT])


def master_value(
    fe: Frontend, number: int, flags: int, choice: Choice, config: FrontendConfig
) -> bytes:
    """Value of slot 0; `number` is the id of the frontend."""
    proxy = l7_port(fe)
    return SERVICE_VALUE.pack(
        0,
        number,
        fe.service.affinity_timeout_s,
        flags,
        choice.used,
        len(choice.shown) - choice.used,
        encode_port(proxy) if proxy else _NO_PORT,
        0,
        entry_type(fe),
        algorithm(fe, config),
        owner(fe),
    )


def owner(fe: Frontend) -> int:
    """Return what the master entry says of the Service whose address it is; never 0."""
    return 1 + crc32(fe.service_name.encode()) % 0xFFFF


def slot_values(
    fe: Frontend, number: int, flags: int, choice: Choice, backend_ids: Mapping[L3n4Addr, int]
) -> list[bytes]:
    """Values of slots 1 and up: source ranges are checked at slot 0 only."""
    kind = entry_type(fe)
    pack = SERVICE_VALUE.pack
    healthy = flags & ~_SOURCE_FLAGS
    values = []
    for position, be in enumerate(choice.shown):
        own = healthy if position < choice.healthy else healthy | _QUARANTINED
        backend_id, weight = backend_ids[be.address], be.weight & 0xFFFF
        values.append(pack(backend_id, number, 0, own, 0, 0, _NO_PORT, weight, kind, 0, 0))
    return values


@cache
def wildcard_value(kind: int) -> bytes:
    """Slot 0 without id and backends: traffic to unknown ports ends here."""
    return SERVICE_VALUE.pack(0, 0, 0, _NON_ROUTABLE, 0, 0, _NO_PORT, 0, kind, 0, 0)


def wants_wildcard(fe: Frontend, config: FrontendConfig) -> bool:
    return (
        config.bpf_lb_enable_wildcard_entries
        and fe.type in (_CLUSTER_IP, _LOAD_BALANCER)
        and fe.address[AT_SCOPE] == SCOPE_EXTERNAL
        and fe.service.load_balancer_class in _WILDCARD_CLASSES
    )

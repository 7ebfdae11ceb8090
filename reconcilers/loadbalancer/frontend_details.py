# SPDX-License-Identifier: Apache-2.0
"""The map entries that only some frontends have, all found by the id of the frontend.

Affinity matches name the backends that clients may stay with, source ranges the clients that are
let in or kept out, a Maglev table the backend for each hash of a connection; and a mark says that a
frontend wakes up by traffic. Pure functions, as in `frontend_entries`.
"""

from collections.abc import Iterator, Mapping, Sequence

from bpf.maps.lb import (
    AFFINITY_MATCH,
    ID,
    PRESENT,
    SourceRange,
    encode_source_meaning,
    encode_source_range,
)
from bpf.maps.lb_numbers import BY_TABLE, Algorithm, FrontendType
from reconcilers.loadbalancer.frontend_config import FrontendConfig
from reconcilers.loadbalancer.frontend_entries import Choice
from reconcilers.loadbalancer.frontend_maps import FamilyMaps
from reconcilers.loadbalancer.maglev import Member, Recipe
from reconcilers.maps.staged import StagedMap
from tables.addressing import L3n4Addr
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.frontends import Frontend
from tables.loadbalancer.services import SourceRangesPolicy

Detail = tuple[StagedMap, bytes, bytes]

# As the option has them; asked for each frontend.
_OPTIONS_BY_TABLE = tuple(algorithm.label for algorithm in BY_TABLE)


def has_details(fe: Frontend, config: FrontendConfig) -> bool:
    """Whether it is worth asking for them; most frontends have none."""
    svc = fe.service
    return bool(
        svc.affinity_timeout_s
        or svc.source_ranges
        or (svc.scale_to_zero and config.enable_scale_to_zero)
        or config.bpf_lb_algorithm in _OPTIONS_BY_TABLE
        or (config.bpf_lb_algorithm_annotation and svc.algorithm in BY_TABLE)
    )


def details_of(
    fe: Frontend,
    addr: L3n4Addr,
    number: int,
    choice: Choice,
    backend_ids: Mapping[L3n4Addr, int],
    family: FamilyMaps,
    config: FrontendConfig,
) -> Iterator[Detail]:
    """Those of `addr`, the frontend's own address or one it is expanded to."""
    serving = serving_backends(choice)
    if fe.service.affinity_timeout_s:
        for be in serving:
            key = AFFINITY_MATCH.pack(backend_ids[be.address], number)
            yield family.affinity, key, PRESENT
    meaning = encode_source_meaning(fe.service.source_ranges_policy is SourceRangesPolicy.DENY)
    for prefix in fe.service.source_ranges:
        if (prefix.version == 6) is addr.is_ipv6:
            source = SourceRange(number, prefix.network_address.packed, prefix.prefixlen)
            yield family.source, encode_source_range(source), meaning
    if fe.service.scale_to_zero and config.enable_scale_to_zero:
        yield family.scale_to_zero, ID.pack(number), PRESENT
    if serving and wants_maglev(fe, addr, config):
        recipe = Recipe.of(
            (Member(turn_name(be), backend_ids[be.address], be.weight) for be in serving),
            config.bpf_lb_maglev_table_size,
            config.maglev_seed,
        )
        yield family.maglev, ID.pack(number), recipe


def serving_backends(choice: Choice) -> Sequence[Backend]:
    """Return those that get new connections: terminating ones where no other is left."""
    return choice.shown[: choice.used]


def wants_maglev(fe: Frontend, addr: L3n4Addr, config: FrontendConfig) -> bool:
    """Surrogates are not looked up by packets, nor are cluster addresses unless they are open to
    the outside, or the service asks for it by name."""
    if addr.is_surrogate:
        return False
    asked = fe.service.algorithm
    if config.bpf_lb_algorithm_annotation and asked is not Algorithm.UNDEF:
        return asked in BY_TABLE
    if config.bpf_lb_algorithm not in _OPTIONS_BY_TABLE:
        return False
    return fe.type is not FrontendType.CLUSTER_IP or config.bpf_lb_external_clusterip


def turn_name(be: Backend) -> str:
    """Return what the turns of a table are ordered by: the same on every node, in every state."""
    return f"[{be.address},State:active]"

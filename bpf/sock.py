# SPDX-License-Identifier: Apache-2.0
"""The programs of sockets (``sock.bpf.c``): what they are told, how large their maps are.

`bpf/datapath.py` loads them together with the programs of packets.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from bpf import features
from bpf.maps.lb import SERVICE_ENTRIES, SOCKET_ENTRIES, SPECS, Kind
from bpf.maps.lb_numbers import Algorithm
from bpf.maps.redirect_skips import NAMES

#: Maps that programs write: the way back, and which backend a client stays with. Sized apart from
#: the others, and moved to a successor.
SOCKET_MAPS = frozenset({"cilia_lb4_sk", "cilia_lb6_sk", "cilia_lb4_aff", "cilia_lb6_aff"})

#: Maps that follow the number of services. All others are of the size that their source names.
SERVICE_MAPS = frozenset(spec.name for spec in SPECS) | set(NAMES)

#: Maps whose entries name each other by numbers. In force, or in the making, is the whole set: a
#: number of one set means another entry in the other, or none.
NUMBERED_MAPS = frozenset(spec.name for spec in SPECS) - SOCKET_MAPS

#: Of these, those that can be copied, so that what is in force keeps its numbers in a larger map.
#: Tables are made anew.
COPIED_MAPS = NUMBERED_MAPS - frozenset(spec.name for spec in SPECS if spec.kind is Kind.TABLES)

#: What an option takes out of force. All others stay: a socket that was translated once needs the
#: way back for as long as it lives.
TRANSLATING = frozenset({"connect4", "connect6", "sendmsg4", "sendmsg6"})
PROTECTING = frozenset({"post_bind4", "post_bind6"})

#: What a client gets when nobody serves what it dials. A socket cannot be kept waiting here as a
#: dropped packet would, so the second is an error that says nothing about the port.
NO_BACKEND_ERRORS: Final = {"reject": errno.ECONNREFUSED, "drop": errno.EHOSTUNREACH}


class SockConfig(NamedTuple):
    """Where, how large, and what of it."""

    pin_dir: Path
    cgroup: Path
    service_entries: int = SERVICE_ENTRIES
    socket_entries: int = SOCKET_ENTRIES
    #: By the name of the map, where one differs from these two.
    own_entries: Mapping[str, int] = MappingProxyType({})
    cache_dir: Path | None = None
    #: Sockets are translated; without, packets are.
    translate: bool = True
    #: Only those in the network namespace that the programs are loaded from.
    host_only: bool = False
    #: Listeners cannot have the address of a node port.
    protect_ports: bool = True
    no_backend: Literal["reject", "drop"] = "reject"
    #: Of services that name none; only ``LEAST_CONNECTIONS`` makes a difference here.
    algorithm: Algorithm = Algorithm.RANDOM
    #: A service may name its own.
    algorithm_annotation: bool = False
    #: Ports that a service lacks are answered like a service without backends.
    wildcard_entries: bool = False


def constants(config: SockConfig) -> dict[str, bytes]:
    """The ``const volatile`` variables; the network namespace is that of this thread."""
    retval = features.has_helper(features.PROG_CGROUP_SOCK_ADDR, features.HELPER_SET_RETVAL)
    error = -NO_BACKEND_ERRORS[config.no_backend]
    counts = config.algorithm_annotation or config.algorithm is Algorithm.LEAST_CONNECTIONS
    return {
        "have_set_retval": bytes([retval]),
        "host_netns_cookie": features.netns_cookie().to_bytes(8, "little"),
        "sock_host_only": bytes([config.host_only]),
        "wildcard_entries": bytes([config.wildcard_entries]),
        "sock_counts": bytes([counts]),
        "sock_algorithm": config.algorithm.to_bytes(4, "little"),
        "no_backend_error": error.to_bytes(4, "little", signed=True),
    }


def unwanted_programs(config: SockConfig) -> frozenset[str]:
    """Names of the programs that the options take out of force."""
    unwanted: frozenset[str] = frozenset()
    if not config.translate:
        unwanted |= TRANSLATING
    if not config.protect_ports:
        unwanted |= PROTECTING
    return unwanted


def map_entries(config: SockConfig, name: str) -> int | None:
    """The size of a map without a size of its own; None for that of the source."""
    if name in SOCKET_MAPS:
        return config.socket_entries
    return config.service_entries if name in SERVICE_MAPS else None

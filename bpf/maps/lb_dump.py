# SPDX-License-Identifier: Apache-2.0
"""The load-balancer maps as text, one sorted line an entry, as tests compare it and people read it.

Reads any `LBMaps`, fake or pinned in the kernel; knows no table, so that it works with the agent
dead.
"""

from __future__ import annotations

import ipaddress
from array import array
from collections import Counter
from collections.abc import Iterator

from bpf.maps.lb import (
    LBFamilyMaps,
    LBMaps,
    ServiceKey,
    ServiceValue,
    decode_affinity_match,
    decode_backend,
    decode_id,
    decode_rev_nat,
    decode_service,
    decode_service_key,
    decode_source_range,
)
from bpf.maps.lb_numbers import Algorithm, EntryState, FrontendType, ServiceFlag
from bpf.maps.tables import MARK_BYTES
from bpf.maps.text import PROTOCOL_NAMES, endpoint_text

_TYPES = {kind.number: kind for kind in FrontendType}

_FLAGS = {
    ServiceFlag.EXT_LOCAL: "Local",
    ServiceFlag.INT_LOCAL: "InternalLocal",
    ServiceFlag.TWO_SCOPES: "two-scopes",
    ServiceFlag.AFFINITY: "sessionAffinity",
    ServiceFlag.NON_ROUTABLE: "non-routable",
    ServiceFlag.SOURCE_RANGE: "check source-range",
    ServiceFlag.SOURCE_DENY: "deny",
    ServiceFlag.TRANSLATE_46X64: "46x64",
    ServiceFlag.L7: "l7-load-balancer",
    ServiceFlag.LOOPBACK: "loopback",
    ServiceFlag.DELEGATE: "delegate-if-local",
    ServiceFlag.QUARANTINED: "quarantined",
    ServiceFlag.DSR: "dsr",
}


def dump(maps: LBMaps) -> str:
    """All entries as sorted lines, each ended by a newline; the empty text for empty maps."""
    lines = sorted([*_family_lines(maps.v4), *_family_lines(maps.v6)])
    return "".join(f"{line}\n" for line in lines)


def service_line(raw_key: bytes, raw_value: bytes) -> str:
    key, value = decode_service_key(raw_key), decode_service(raw_value)
    scope = "/i" if key.scope else ""
    address = f"{endpoint_text(key.address, key.port)}/{_protocol(key.proto)}{scope}"
    return (
        f"SVC: ID={value.rev_nat} ADDR={address} SLOT={key.slot} {_service_info(key, value)} "
        f"COUNT={value.count} QCOUNT={value.qcount} FLAGS={flags_text(value)}"
    )


def backend_line(raw_key: bytes, raw_value: bytes) -> str:
    value = decode_backend(raw_value)
    state = EntryState(value.state).name.lower()
    address = f"{endpoint_text(value.address, value.port)}/{_protocol(value.proto)}"
    return f"BE: ID={decode_id(raw_key)} ADDR={address} STATE={state}"


def rev_nat_line(raw_key: bytes, raw_value: bytes) -> str:
    value = decode_rev_nat(raw_value)
    return f"REV: ID={decode_id(raw_key)} ADDR={endpoint_text(value.address, value.port)}"


def affinity_match_line(raw_key: bytes) -> str:
    key = decode_affinity_match(raw_key)
    return f"AFF: ID={key.rev_nat} BEID={key.backend_id}"


def source_range_line(raw_key: bytes) -> str:
    key = decode_source_range(raw_key)
    return f"SRCRANGE: ID={key.rev_nat} CIDR={ipaddress.ip_address(key.address)}/{key.length}"


def maglev_line(raw_key: bytes, table: bytes) -> str:
    """Tell how many positions each backend has; thousands of them would fill the dump."""
    counts = Counter(array("I", table[:-MARK_BYTES]))
    del counts[0]  # behind the last position; no backend has this id
    members = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    inner = ", ".join(f"{number}({count})" for number, count in members)
    return f"MAGLEV: ID={decode_id(raw_key)} INNER=[{inner}]"


def flags_text(value: ServiceValue) -> str:
    """The type and the flags that are set, joined by `+`."""
    kind = _TYPES.get(value.type, str(value.type))
    return "+".join([kind, *(text for flag, text in _FLAGS.items() if value.flags & flag)])


def _family_lines(maps: LBFamilyMaps) -> Iterator[str]:
    for key, value in maps.service.items():
        yield service_line(key, value)
    for key, value in maps.backend.items():
        yield backend_line(key, value)
    for key, value in maps.rev_nat.items():
        yield rev_nat_line(key, value)
    for key, _ in maps.affinity_match.items():  # noqa: PERF102  a raw map is no dict
        yield affinity_match_line(key)
    for key, _ in maps.source.items():  # noqa: PERF102
        yield source_range_line(key)
    for key, table in maps.maglev.items():
        yield maglev_line(key, table)


def dump_scale_to_zero(maps: LBMaps) -> str:
    """The frontends that wake up by traffic, which are no part of `dump`."""
    families = (maps.v4, maps.v6)
    lines = [scale_to_zero_line(key) for f in families for key, _ in f.scale_to_zero.items()]
    return "".join(f"{line}\n" for line in sorted(lines))


def scale_to_zero_line(key: bytes) -> str:
    return f"SCALETOZERO: ID={decode_id(key)}"


def _service_info(key: ServiceKey, value: ServiceValue) -> str:
    if key.slot:
        return f"BEID={value.backend_id}"
    if value.flags & ServiceFlag.L7:
        return f"L7Proxy={value.l7_port}"
    algorithm = Algorithm(value.algorithm).label
    return f"LBALG={algorithm} AFFTimeout={value.affinity_timeout_s}"


def _protocol(number: int) -> str:
    return PROTOCOL_NAMES.get(number, "ANY")

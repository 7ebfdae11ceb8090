# SPDX-License-Identifier: Apache-2.0
"""``frontends``: the addresses that clients use, each with its service and the backends chosen for
it.

The load-balancer writer makes the rows, one for each address, and alone decides who owns an
address. The reconciler of the frontends writes back ``status`` and ``id`` and nothing else.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from bpf.maps.lb_numbers import FrontendType
from statedb import DB, Column, Index, RWTable, new_table
from statedb.status import Status
from tables.addressing import L3n4Addr, ServiceName, parse_address_key
from tables.loadbalancer.backends import Backend
from tables.loadbalancer.backends import to_json as backend_json
from tables.loadbalancer.services import Service, SourceRangesPolicy
from tables.status_columns import STATUS_COLUMNS
from tables.times import rfc3339

TABLE_NAME: Final = "frontends"
BACKENDS_SHOWN: Final = 5


class FrontendParams(msgspec.Struct, frozen=True, gc=False):
    """What a source asks for; everything else in a row is kept by the system."""

    address: L3n4Addr
    type: FrontendType
    port_name: str = ""
    # The port of the service, which is not the port of the address for a node port.
    service_port: int = 0


class Frontend(msgspec.Struct, frozen=True, gc=False):
    # From FrontendParams.
    address: L3n4Addr
    type: FrontendType
    service_name: ServiceName
    port_name: str
    service_port: int
    # Kept by the writer: the row of the owning service as of this write, the chosen backends in
    # address order, and all that a health checker has to probe (the same object where nothing is
    # held back).
    service: Service
    backends: tuple[Backend, ...]
    health_check_backends: tuple[Backend, ...]
    # Set by redirect policies: the backends are those of this service.
    redirect_to: ServiceName | None
    # Written back by the reconciler; id is 0 until the address has been given one.
    status: Status
    id: int = 0


def params_of(fe: Frontend) -> FrontendParams:
    return FrontendParams(fe.address, fe.type, fe.port_name, fe.service_port)


def with_outcome(fe: Frontend, status: Status, service_id: int) -> Frontend:
    """The row with what the reconciler learned."""
    return msgspec.structs.replace(fe, status=status, id=service_id)


def backends_cell(fe: Frontend) -> str:
    shown = ", ".join(str(be.address) for be in fe.backends[:BACKENDS_SHOWN])
    more = len(fe.backends) - BACKENDS_SHOWN
    return f"{shown} + {more} more ..." if more > 0 else shown


def flags_cell(fe: Frontend) -> str:
    svc, flags = fe.service, []
    if svc.source_ranges:
        flags.append("SourceRanges=" + ", ".join(map(str, svc.source_ranges)))
    if svc.source_ranges_policy is SourceRangesPolicy.DENY:
        flags.append("SourceRangesPolicy=deny")
    return ", ".join(flags)


def to_json(fe: Frontend) -> dict[str, Any]:
    return {
        "Address": str(fe.address),
        "Type": fe.type.value,
        "ServiceName": str(fe.service_name),
        "PortName": fe.port_name,
        "ServicePort": fe.service_port,
        "Status": _status_json(fe.status),
        "Backends": [backend_json(be) for be in fe.backends],
        "HealthCheckBackends": [backend_json(be) for be in fe.health_check_backends],
        "ID": fe.id,
        "RedirectTo": fe.redirect_to,
        "SourceRanges": [str(prefix) for prefix in fe.service.source_ranges],
        "SourceRangesPolicy": fe.service.source_ranges_policy.value,
    }


def _status_json(status: Status) -> dict[str, Any]:
    form: dict[str, Any] = {"updated-at": rfc3339(status.updated_at)}
    if status.error:
        form["error"] = status.error
    if status.id:
        form["id"] = status.id
    form["kind"] = str(status.kind)
    return form


def _address(fe: Frontend) -> L3n4Addr:
    return fe.address


def _service(fe: Frontend) -> ServiceName:
    return fe.service_name


def _redirect(fe: Frontend) -> tuple[ServiceName, ...]:
    return () if fe.redirect_to is None else (fe.redirect_to,)


ADDRESS: Final = Index("address", key=_address, parse=parse_address_key)
SERVICE: Final = Index("service", key=_service, unique=False, parse=str)
# Frontends of other services that show this service's backends.
REDIRECT: Final = Index("redirect", keys=_redirect, unique=False, parse=str)

COLUMNS: Final = (
    Column("Address", lambda fe: str(fe.address)),
    Column("Type", lambda fe: fe.type.value),
    Column("ServiceName", lambda fe: str(fe.service_name)),
    Column("PortName", lambda fe: fe.port_name),
    Column("Backends", backends_cell),
    Column("RedirectTo", lambda fe: fe.redirect_to or ""),
    Column("Flags", flags_cell),
    *STATUS_COLUMNS,
)


def new_frontends_table(db: DB) -> RWTable[Frontend]:
    """Registers ``frontends`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        ADDRESS,
        SERVICE,
        REDIRECT,
        columns=COLUMNS,
        row_type=Frontend,
        to_json=to_json,
    )

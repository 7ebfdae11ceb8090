# SPDX-License-Identifier: Apache-2.0
"""``localredirectpolicies``: whose traffic goes to pods of this node instead.

A row is a CiliumLocalRedirectPolicy as it was understood; one that means nothing has no row but a
problem. What follows from it is in ``services``, ``frontends``, ``backends`` (by the name
``redirect_service``) and ``desired-skiplbmap``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import L3n4Addr, ServiceName
from tables.selectors import Selector

TABLE_NAME: Final = "localredirectpolicies"
REDIRECT_SUFFIX: Final = ":local-redirect"


class RedirectType(StrEnum):
    ADDRESS = "address"
    SERVICE = "service"


class FrontendMatch(StrEnum):
    """What of the service or address is redirected."""

    ALL = "all"
    NAMED_PORTS = "named-ports"
    SERVICE_PORT = "svc-single-port"
    ADDRESS_PORT = "addr-single-port"
    ADDRESS_NAMED_PORTS = "addr-named-ports"

    @property
    def description(self) -> str:
        return _DESCRIPTIONS[self]


_DESCRIPTIONS: Final = {
    FrontendMatch.ALL: "clusterIP + all svc ports",
    FrontendMatch.NAMED_PORTS: "clusterIP + named ports",
    FrontendMatch.SERVICE_PORT: "clusterIP + port",
    FrontendMatch.ADDRESS_PORT: "IP + port",
    FrontendMatch.ADDRESS_NAMED_PORTS: "IP + named ports",
}


class RedirectFrontend(msgspec.Struct, frozen=True, gc=False):
    # 0.0.0.0 where the service has the address.
    address: L3n4Addr
    port_name: str = ""


class BackendPort(msgspec.Struct, frozen=True, gc=False):
    port: int
    protocol: str
    name: str = ""


class RedirectPolicy(msgspec.Struct, frozen=True, gc=False):
    # "namespace/name" of the policy, as of a service.
    name: ServiceName
    type: RedirectType
    match: FrontendMatch
    # The service whose cluster addresses are redirected; None: an address is.
    service: ServiceName | None
    frontends: tuple[RedirectFrontend, ...]
    backend_ports: tuple[BackendPort, ...]
    selector: Selector
    # The selector as it is shown.
    selector_text: str
    skip_redirect_from_backend: bool = False

    @property
    def redirect_service(self) -> ServiceName:
        """Name of the service that its backends are."""
        return ServiceName(f"{self.name}{REDIRECT_SUFFIX}")


def selector_text(
    match_labels: Mapping[str, str], expressions: list[tuple[str, str, list[str]]]
) -> str:
    r"""As Go prints a LabelSelector: what scripts compare with.

    >>> print(selector_text({"k8s:app": "dns"}, [("a", "In", ["b"])]).replace(",M", ",\nM"))
    &LabelSelector{MatchLabels:map[string]string{k8s:app: dns,},
    MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:a,Operator:In,Values:[b],},},}
    """
    labels = "".join(f"{key}: {value}," for key, value in sorted(match_labels.items()))
    wanted = "".join(
        f"LabelSelectorRequirement{{Key:{key},Operator:{op},Values:[{' '.join(values)}],}},"
        for key, op, values in expressions
    )
    return (
        f"&LabelSelector{{MatchLabels:map[string]string{{{labels}}},"
        f"MatchExpressions:[]LabelSelectorRequirement{{{wanted}}},}}"
    )


def to_json(policy: RedirectPolicy) -> dict[str, Any]:
    return {
        "Name": str(policy.name),
        "Type": policy.type.value,
        "Service": policy.service,
        "FrontendType": policy.match.value,
        "Frontends": [
            {"Address": str(fe.address), "PortName": fe.port_name} for fe in policy.frontends
        ],
        "BackendSelector": policy.selector_text,
        "BackendPorts": [
            {"Port": port.port, "Protocol": port.protocol, "Name": port.name}
            for port in policy.backend_ports
        ],
        "SkipRedirectFromBackend": policy.skip_redirect_from_backend,
    }


def _name(policy: RedirectPolicy) -> ServiceName:
    return policy.name


def _service(policy: RedirectPolicy) -> tuple[ServiceName, ...]:
    return () if policy.service is None else (policy.service,)


NAME: Final = Index("name", key=_name, parse=str)
SERVICE: Final = Index("service", keys=_service, unique=False, parse=str)

COLUMNS: Final = (
    Column("Name", lambda policy: str(policy.name)),
    Column("Type", lambda policy: policy.type.value),
    Column("Service", lambda policy: policy.service or ""),
    Column("FrontendType", lambda policy: policy.match.value),
    Column("Frontends", lambda policy: ", ".join(str(fe.address) for fe in policy.frontends)),
    Column("BackendSelector", lambda policy: policy.selector_text),
)


def new_redirect_policies_table(db: DB) -> RWTable[RedirectPolicy]:
    """Registers ``localredirectpolicies`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        NAME,
        SERVICE,
        columns=COLUMNS,
        row_type=RedirectPolicy,
        to_json=to_json,
    )

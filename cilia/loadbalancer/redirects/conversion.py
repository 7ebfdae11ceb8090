# SPDX-License-Identifier: Apache-2.0
"""From a CiliumLocalRedirectPolicy to its row; pure.

The schema was checked when the object was read. Here is what spans fields, or needs the node's
options; a policy that fails is refused as a whole, since half a redirection serves nobody.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from cilia.k8s.crds.label_selectors import LabelSelector
from cilia.k8s.crds.redirect_policies import (
    AddressMatcher,
    CiliumLocalRedirectPolicy,
    PortInfo,
    ServiceMatcher,
)
from cilia.k8s.objects import InvalidObject
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.redirect_policies import (
    BackendPort,
    FrontendMatch,
    RedirectFrontend,
    RedirectPolicy,
    RedirectType,
    selector_text,
)
from tables.loadbalancer.services import IPNetwork

Errors = list[tuple[str, str]]

# Labels of pods are known to selectors by where they come from.
_SOURCE: Final = "k8s:"
_ADDRESS: Final = "spec.redirectFrontend.addressMatcher"
_SERVICE: Final = "spec.redirectFrontend.serviceMatcher"
_BACKEND: Final = "spec.redirectBackend"


def convert_policy(
    obj: CiliumLocalRedirectPolicy, allowed: Sequence[IPNetwork] = ()
) -> RedirectPolicy:
    """The row of a policy. ``allowed``: where matched addresses must be; empty: anywhere.

    Raises:
        InvalidObject: names every field that is wrong.
    """
    meta, spec = obj.metadata, obj.spec
    frontend, backend = spec.redirect_frontend, spec.redirect_backend
    errors: Errors = []
    service: ServiceName | None = None
    if frontend.service_matcher is not None:
        match, frontends = _of_service(frontend.service_matcher, meta.namespace, errors)
        matcher = frontend.service_matcher
        service = ServiceName.of(matcher.namespace, matcher.service_name)
    else:
        assert frontend.address_matcher is not None  # the model's own check
        match, frontends = _of_address(frontend.address_matcher, allowed, errors)
    _check_ports(f"{_BACKEND}.toPorts", backend.to_ports, errors)
    if errors:
        raise InvalidObject(obj.KIND, meta.namespace, meta.name, errors)
    return RedirectPolicy(
        ServiceName.of(meta.namespace, meta.name),
        RedirectType.ADDRESS if service is None else RedirectType.SERVICE,
        match,
        service,
        frontends,
        tuple(BackendPort(int(p.port), p.protocol, _name(p)) for p in backend.to_ports),
        _plain(backend.local_endpoint_selector).parsed(),
        _shown(backend.local_endpoint_selector),
        spec.skip_redirect_from_backend,
    )


Frontends = tuple[RedirectFrontend, ...]


def _of_service(
    matcher: ServiceMatcher, namespace: str, errors: Errors
) -> tuple[FrontendMatch, Frontends]:
    if matcher.namespace != namespace:
        errors.append((f"{_SERVICE}.namespace", f"must be that of the policy, {namespace!r}"))
    ports = matcher.to_ports or []
    if not ports:
        return FrontendMatch.ALL, ()
    _check_ports(f"{_SERVICE}.toPorts", ports, errors)
    match = FrontendMatch.NAMED_PORTS if len(ports) > 1 else FrontendMatch.SERVICE_PORT
    return match, _frontends("0.0.0.0", ports)


def _of_address(
    matcher: AddressMatcher, allowed: Sequence[IPNetwork], errors: Errors
) -> tuple[FrontendMatch, Frontends]:
    ip = ipaddress.ip_address(matcher.ip)
    if ip.is_unspecified or ip.is_multicast:
        errors.append((f"{_ADDRESS}.ip", f"{matcher.ip} is no address of one peer"))
    if allowed and not any(ip in network for network in allowed):
        shown = ", ".join(map(str, allowed))
        errors.append(
            (f"{_ADDRESS}.ip", f"{ip} is in none of --lrp-address-matcher-cidrs ({shown})")
        )
    _check_ports(f"{_ADDRESS}.toPorts", matcher.to_ports, errors)
    named = len(matcher.to_ports) > 1
    match = FrontendMatch.ADDRESS_NAMED_PORTS if named else FrontendMatch.ADDRESS_PORT
    return match, _frontends(matcher.ip, matcher.to_ports)


def _frontends(ip: str, ports: Sequence[PortInfo]) -> Frontends:
    return tuple(
        RedirectFrontend(L3n4Addr.of(ip, int(port.port), port.protocol), _name(port))
        for port in ports
    )


def _check_ports(path: str, ports: Sequence[PortInfo], errors: Errors) -> None:
    """Several ports are told apart by their names, on both sides."""
    if not ports:
        errors.append((path, "needs at least one port"))
    seen: set[str] = set()
    for i, port in enumerate(ports):
        name = _name(port)
        if len(ports) > 1 and not name:
            errors.append((f"{path}[{i}].name", "is missing: each of several ports needs one"))
        if name and name in seen:
            errors.append((f"{path}[{i}].name", f"{port.name!r} is used twice"))
        seen.add(name)


def _name(port: PortInfo) -> str:
    """Names of ports are compared without case."""
    return (port.name or "").lower()


def _plain(selector: LabelSelector) -> LabelSelector:
    """Without the sources of labels, which pods' own labels do not carry."""
    labels = selector.match_labels or {}
    return LabelSelector(
        match_labels={key.removeprefix(_SOURCE): value for key, value in labels.items()},
        match_expressions=[
            expression.model_copy(update={"key": expression.key.removeprefix(_SOURCE)})
            for expression in selector.match_expressions or ()
        ],
    )


def _shown(selector: LabelSelector) -> str:
    plain = _plain(selector)
    return selector_text(
        {_SOURCE + key: value for key, value in (plain.match_labels or {}).items()},
        [
            (_SOURCE + expression.key, expression.operator, expression.values or [])
            for expression in plain.match_expressions or ()
        ],
    )

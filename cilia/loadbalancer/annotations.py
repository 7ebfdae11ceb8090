# SPDX-License-Identifier: Apache-2.0
"""The annotations by which a Service or EndpointSlice asks for more than its spec can say.

Each reader returns what is asked for, or raises ``IgnoredAnnotation`` when the value means nothing;
the object is then used as if the annotation were not there, and its owner is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from bpf.maps.lb_numbers import Algorithm
from cilia.loadbalancer.this_node import LocalNode
from statedb.shown.text import shortened
from tables.loadbalancer.services import (
    NODE_ANNOTATION,
    NODE_SELECTOR_ANNOTATION,
    ForwardingMode,
    ProxyDelegation,
    SourceRangesPolicy,
)
from tables.selectors import parse_selector

PREFIX: Final = "service.cilium.io/"
TYPE: Final = PREFIX + "type"
NODE: Final = NODE_ANNOTATION
NODE_SELECTOR: Final = NODE_SELECTOR_ANNOTATION
FORWARDING_MODE: Final = PREFIX + "forwarding-mode"
ALGORITHM: Final = PREFIX + "lb-algorithm"
SOURCE_RANGES_POLICY: Final = PREFIX + "src-ranges-policy"
PROXY_DELEGATION: Final = PREFIX + "proxy-delegation"
SCALE_TO_ZERO: Final = PREFIX + "scale-to-zero"
WEIGHT: Final = PREFIX + "weight"
GLOBAL: Final = PREFIX + "global"
SHARED: Final = PREFIX + "shared"
AFFINITY: Final = PREFIX + "affinity"
TOPOLOGY_MODE: Final = "service.kubernetes.io/topology-mode"
# The older name, which wins where both stand.
TOPOLOGY_HINTS: Final = "service.kubernetes.io/topology-aware-hints"
HEADLESS_LABEL: Final = "service.kubernetes.io/headless"

_EXPOSABLE: Final = frozenset(("ClusterIP", "NodePort", "LoadBalancer"))
MAX_WEIGHT: Final = 65535

Annotations = Mapping[str, str]
T = TypeVar("T")


class IgnoredAnnotation(ValueError):
    """The value of an annotation has no meaning; args are its name and what is wrong with it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = shortened(message)


def exposed_types(annotations: Annotations) -> frozenset[str] | None:
    """The service types to make frontends for; None: all that the spec asks for."""
    if TYPE not in annotations:
        return None
    types = frozenset(part.strip() for part in annotations[TYPE].split(","))
    if not types <= _EXPOSABLE:
        unknown = ", ".join(sorted(types - _EXPOSABLE))
        raise IgnoredAnnotation(TYPE, f"{unknown!r} is not one of {', '.join(sorted(_EXPOSABLE))}")
    return types


def is_for_node(annotations: Annotations, node: LocalNode) -> bool:
    """False if the service is meant for other nodes. A selector counts more than a plain value."""
    if NODE_SELECTOR in annotations:
        try:
            return parse_selector(annotations[NODE_SELECTOR]).matches(node.labels)
        except ValueError as error:
            raise IgnoredAnnotation(NODE_SELECTOR, str(error)) from None
    return NODE not in annotations or node.labels.get(NODE) == annotations[NODE]


def depends_on_node(annotations: Annotations | None) -> bool:
    return annotations is not None and (NODE in annotations or NODE_SELECTOR in annotations)


def algorithm(annotations: Annotations) -> Algorithm:
    return _choice(annotations, ALGORITHM, {a.label: a for a in Algorithm if a}, Algorithm.UNDEF)


def forwarding_mode(annotations: Annotations) -> ForwardingMode:
    modes = {mode.value: mode for mode in ForwardingMode if mode}
    return _choice(annotations, FORWARDING_MODE, modes, ForwardingMode.UNDEF)


def source_ranges_policy(annotations: Annotations) -> SourceRangesPolicy:
    policies = {policy.value: policy for policy in SourceRangesPolicy}
    return _choice(annotations, SOURCE_RANGES_POLICY, policies, SourceRangesPolicy.ALLOW)


def proxy_delegation(annotations: Annotations) -> ProxyDelegation:
    values = {value.value: value for value in ProxyDelegation}
    return _choice(annotations, PROXY_DELEGATION, values, ProxyDelegation.NONE)


def scale_to_zero(annotations: Annotations) -> bool:
    return _choice(annotations, SCALE_TO_ZERO, {"true": True, "false": False}, False)


def of_clusters(annotations: Annotations) -> Iterator[IgnoredAnnotation]:
    """What is wrong with the annotations on a service in several clusters.

    The rows of the own cluster's service are the same whatever they say.
    """
    truth, preferred = ("true", "false"), ("none", "local", "remote")
    for name, values in ((GLOBAL, truth), (SHARED, truth), (AFFINITY, preferred)):
        try:
            _choice(annotations, name, dict.fromkeys(values), None)
        except IgnoredAnnotation as error:
            yield error


def wants_topology(annotations: Annotations) -> bool:
    value = annotations.get(TOPOLOGY_HINTS, annotations.get(TOPOLOGY_MODE, ""))
    return value not in ("", "disabled", "Disabled")


def weight(annotations: Annotations, default: int) -> int:
    """The weight of all backends of a slice; 0 takes them out of use."""
    text = annotations.get(WEIGHT)
    if text is None:
        return default
    # Python converts no more than some thousand digits.
    digits = text.lstrip("0") or text[-1:]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 5 or int(digits) > MAX_WEIGHT:
        raise IgnoredAnnotation(WEIGHT, f"{text!r} is not a number from 0 to {MAX_WEIGHT}")
    return int(digits)


def _choice(annotations: Annotations, name: str, values: Mapping[str, T], default: T) -> T:
    text = annotations.get(name)
    if text is None:
        return default
    if text.lower() not in values:
        raise IgnoredAnnotation(name, f"{text!r} is not one of {', '.join(values)}")
    return values[text.lower()]

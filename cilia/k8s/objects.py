# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects, slim: only the fields that this project uses, validated as the API server
would.

Unknown fields are ignored, so an object from a newer cluster is read; ``null`` for a list or a map
is what Go writes for an empty one. Sequences are read with ``or ()`` by their users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from socket import AF_INET, AF_INET6, inet_pton
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from statedb.shown.text import shortened
from tables.addressing import Prefix

_NAME: Final = re.compile(r"[-a-z0-9.]{1,253}")
_NAMESPACE: Final = re.compile(r"[-a-z0-9.]{0,253}")


def _object_name(value: str) -> str:
    if not _NAME.fullmatch(value) or value[0] in "-." or value[-1] in "-.":
        raise ValueError("must be lower case letters, digits, '-' and '.', at most 253 of them")
    return value


def _namespace(value: str) -> str:
    if not _NAMESPACE.fullmatch(value):
        raise ValueError("must be lower case letters, digits and '-', at most 63 of them")
    return value


def _ip(value: str) -> str:
    try:
        inet_pton(AF_INET6 if ":" in value else AF_INET, value)
    except (OSError, ValueError):
        raise ValueError(f"{value!r} is not an IP address") from None
    return value


def _cluster_ip(value: str) -> str:
    return value if value.lower() in ("", "none") else _ip(value)


def _optional_ip(value: str) -> str:
    return value and _ip(value)


def _cidr(value: str) -> str:
    return str(Prefix.parse(value.strip()))


Name = Annotated[str, AfterValidator(_object_name)]
NamespaceName = Annotated[str, AfterValidator(_namespace)]
Address = Annotated[str, AfterValidator(_ip)]
OptionalAddress = Annotated[str, AfterValidator(_optional_ip)]
ClusterAddress = Annotated[str, AfterValidator(_cluster_ip)]
Cidr = Annotated[str, AfterValidator(_cidr)]
Port = Annotated[int, Field(ge=1, le=65535)]
OptionalPort = Annotated[int, Field(ge=0, le=65535)]
L4Protocol = Literal["TCP", "UDP", "SCTP"]
Family = Literal["IPv4", "IPv6"]


class Model(BaseModel):
    """Strict: a port in quotes is an error here because it is one at the API server."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", strict=True
    )


class Metadata(Model):
    name: Name
    namespace: NamespaceName = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class K8sObject(Model):
    """What all kinds have. ``API_VERSION``, ``KIND`` and ``RESOURCE`` name the kind everywhere."""

    API_VERSION: ClassVar[str]
    KIND: ClassVar[str]
    RESOURCE: ClassVar[str]
    NAMESPACED: ClassVar[bool] = True

    metadata: Metadata

    @property
    def key(self) -> ObjectKey:
        metadata = self.metadata
        return (self.KIND, metadata.namespace, metadata.name)


# Kind, namespace ("" for what has none) and name.
ObjectKey = tuple[str, str, str]


class ServicePort(Model):
    name: str = ""
    protocol: L4Protocol = "TCP"
    port: Port
    node_port: OptionalPort = 0


class ClientIPConfig(Model):
    timeout_seconds: Annotated[int, Field(ge=0, le=86400)] | None = None


class SessionAffinityConfig(Model):
    client_ip: ClientIPConfig | None = Field(default=None, alias="clientIP")


class ServiceSpec(Model):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: ClusterAddress = Field(default="", alias="clusterIP")
    cluster_ips: list[ClusterAddress] | None = Field(default=None, alias="clusterIPs")
    external_ips: list[Address] | None = Field(default=None, alias="externalIPs")
    external_name: str = ""
    ip_families: list[Family] | None = None
    ports: list[ServicePort] | None = None
    selector: dict[str, str] | None = None
    session_affinity: Literal["None", "ClientIP", ""] = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    external_traffic_policy: Literal["Cluster", "Local", ""] = ""
    internal_traffic_policy: Literal["Cluster", "Local"] | None = None
    health_check_node_port: OptionalPort = 0
    load_balancer_class: str | None = None
    load_balancer_source_ranges: list[Cidr] | None = None
    traffic_distribution: str | None = None


class LoadBalancerIngress(Model):
    ip: OptionalAddress = ""
    ip_mode: str | None = None


class LoadBalancerStatus(Model):
    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Model):
    load_balancer: LoadBalancerStatus | None = None


class Service(K8sObject):
    API_VERSION: ClassVar[str] = "v1"
    KIND: ClassVar[str] = "Service"
    RESOURCE: ClassVar[str] = "services"

    spec: ServiceSpec
    status: ServiceStatus | None = None


class EndpointConditions(Model):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class NameHint(Model):
    name: str


class EndpointHints(Model):
    for_zones: list[NameHint] | None = None
    for_nodes: list[NameHint] | None = None


class Endpoint(Model):
    # Addresses are checked against the family of the slice, see ``EndpointSlice``.
    addresses: list[str]
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None


class EndpointPort(Model):
    name: str | None = None
    protocol: L4Protocol | None = None
    # Absent: every port, which a load balancer cannot use.
    port: Port | None = None


class EndpointSlice(K8sObject):
    API_VERSION: ClassVar[str] = "discovery.k8s.io/v1"
    KIND: ClassVar[str] = "EndpointSlice"
    RESOURCE: ClassVar[str] = "endpointslices"
    SERVICE_LABEL: ClassVar[str] = "kubernetes.io/service-name"

    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class ContainerPort(Model):
    name: str = ""
    container_port: Port
    host_port: OptionalPort = 0
    host_ip: OptionalAddress = Field(default="", alias="hostIP")
    protocol: L4Protocol = "TCP"


class Container(Model):
    name: str
    ports: list[ContainerPort] | None = None


class PodSpec(Model):
    node_name: str = ""
    host_network: bool = False
    service_account_name: str = ""
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIP(Model):
    ip: OptionalAddress = ""


class Condition(Model):
    type: str
    status: str


class PodStatus(Model):
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown", ""] = ""
    pod_ip: OptionalAddress = Field(default="", alias="podIP")
    pod_ips: list[PodIP] | None = Field(default=None, alias="podIPs")
    host_ip: OptionalAddress = Field(default="", alias="hostIP")
    conditions: list[Condition] | None = None


class Pod(K8sObject):
    API_VERSION: ClassVar[str] = "v1"
    KIND: ClassVar[str] = "Pod"
    RESOURCE: ClassVar[str] = "pods"

    spec: PodSpec
    status: PodStatus | None = None


class NodeSpec(Model):
    pod_cidr: str = Field(default="", alias="podCIDR")
    pod_cidrs: list[Cidr] | None = Field(default=None, alias="podCIDRs")


class NodeAddress(Model):
    type: str
    address: str

    @model_validator(mode="after")
    def _checked(self) -> NodeAddress:
        if self.type in ("InternalIP", "ExternalIP"):
            _ip(self.address)
        return self


class NodeStatus(Model):
    addresses: list[NodeAddress] | None = None


class Node(K8sObject):
    API_VERSION: ClassVar[str] = "v1"
    KIND: ClassVar[str] = "Node"
    RESOURCE: ClassVar[str] = "nodes"
    NAMESPACED: ClassVar[bool] = False

    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class Namespace(K8sObject):
    API_VERSION: ClassVar[str] = "v1"
    KIND: ClassVar[str] = "Namespace"
    RESOURCE: ClassVar[str] = "namespaces"
    NAMESPACED: ClassVar[bool] = False


# A slice of more is refused: the maps count the backends of a frontend in 16 bits.
MOST_BACKENDS: Final = 65_535
# A Service of more is refused: everybody who may write one would stop all others for seconds.
MOST_FRONTENDS: Final = 20_000

# By version and kind; custom resources add themselves (`register`).
KINDS: Final[dict[tuple[str, str], type[K8sObject]]] = {
    (model.API_VERSION, model.KIND): model
    for model in (Service, EndpointSlice, Pod, Node, Namespace)
}


def register(model: type[K8sObject]) -> None:
    """Makes `decode` know a kind that is defined elsewhere."""
    KINDS[model.API_VERSION, model.KIND] = model


# A wrong value is told with its message if it is no longer than this.
_MOST_SHOWN: Final = 60
# Errors of one object that are told one by one.
MOST_ERRORS: Final = 20


class InvalidObject(Exception):
    """An object that cannot be used; ``errors`` are pairs of field path and message, of bounded
    number and length whatever stands in the object."""

    def __init__(self, kind: str, namespace: str, name: str, errors: list[tuple[str, str]]) -> None:
        self.errors = [(shortened(field), shortened(text)) for field, text in errors[:MOST_ERRORS]]
        if len(errors) > MOST_ERRORS:
            self.errors.append(("", f"has {len(errors) - MOST_ERRORS} more errors"))
        super().__init__("; ".join(f"{field}: {message}" for field, message in self.errors))
        self.kind = shortened(kind)
        self.namespace = shortened(namespace)
        self.name = shortened(name)


def decode(form: object) -> K8sObject:
    """An object from its plain form (what a YAML or JSON decoder gives).

    A namespaced object without a namespace is in ``default``, as with kubectl.

    Raises:
        InvalidObject: the kind is unknown, or a field is missing or wrong; names every such field.
    """
    if not isinstance(form, dict):
        raise InvalidObject("", "", "", [("", "is not a Kubernetes object (a mapping)")])
    kind, api_version = form.get("kind"), form.get("apiVersion")
    namespace, name = _identity(form)
    try:
        model = KINDS.get((api_version, kind))  # type: ignore[arg-type]
    except TypeError:
        model = None
    if model is None:
        raise InvalidObject(_text(kind), namespace, name, [_unknown_kind(api_version, kind)])
    try:
        return _finished(model.model_validate(form))
    except InvalidObject:
        raise
    except Exception as error:  # noqa: BLE001 - of this object alone
        raise InvalidObject(model.KIND, namespace, name, _errors(error)) from None


def decode_json(model: type[K8sObject], key: ObjectKey, data: bytes | memoryview) -> K8sObject:
    """An object of a known kind from JSON; `key` is what a glance at the bytes told.

    Raises InvalidObject.
    """
    try:
        return _finished(model.model_validate_json(bytes(data)))
    except InvalidObject:
        raise
    except Exception as error:  # noqa: BLE001 - of this object alone
        raise InvalidObject(*key, _errors(error)) from None


def unexpected(error: Exception) -> str:
    """Return the message of a problem for an exception that nobody thought of."""
    return shortened(f"cannot be used: {type(error).__name__}: {error}")


def _finished(obj: K8sObject) -> K8sObject:
    """The namespace put right, and the checks that span several fields."""
    meta = obj.metadata
    meta.namespace = (meta.namespace or "default") if obj.NAMESPACED else ""
    errors = list(_cross_checks(obj))
    if errors:
        raise InvalidObject(obj.KIND, meta.namespace, meta.name, errors)
    return obj


def _cross_checks(obj: K8sObject) -> list[tuple[str, str]]:
    if isinstance(obj, EndpointSlice):
        return _too_many_backends(obj) or _wrong_addresses(obj)
    if isinstance(obj, Service):
        return _too_many_frontends(obj) or _wrong_ports(obj)
    return []


def _too_many_backends(obj: EndpointSlice) -> list[tuple[str, str]]:
    addresses = sum(len(endpoint.addresses) for endpoint in obj.endpoints or ())
    number = addresses * len(obj.ports or ())
    if number <= MOST_BACKENDS:
        return []
    return [("endpoints", f"makes {number} backends with all ports, more than {MOST_BACKENDS}")]


def _too_many_frontends(obj: Service) -> list[tuple[str, str]]:
    spec, balancer = obj.spec, obj.status.load_balancer if obj.status else None
    # One for each address that it says, and both families of node ports.
    addresses = 2 + sum(
        len(said or ())
        for said in (spec.cluster_ips, spec.external_ips, balancer and balancer.ingress)
    )
    number = addresses * len(spec.ports or ())
    if number <= MOST_FRONTENDS:
        return []
    return [
        ("spec.ports", f"makes {number} frontends with all addresses, more than {MOST_FRONTENDS}")
    ]


def _wrong_addresses(obj: EndpointSlice) -> list[tuple[str, str]]:
    if obj.address_type == "FQDN":
        return []
    family = AF_INET6 if obj.address_type == "IPv6" else AF_INET
    errors = []
    for i, endpoint in enumerate(obj.endpoints or ()):
        for j, address in enumerate(endpoint.addresses):
            try:
                inet_pton(family, address)
            except (OSError, ValueError):
                path = f"endpoints[{i}].addresses[{j}]"
                errors.append((path, f"{address!r} is not an {obj.address_type} address"))
    return errors


def _wrong_ports(obj: Service) -> list[tuple[str, str]]:
    """Ports of one service are told apart by name, and by number and protocol."""
    ports = obj.spec.ports or ()
    if len(ports) < 2:
        return []
    errors, names, numbers = [], set(), set()
    for i, port in enumerate(ports):
        if port.name and port.name in names:
            errors.append((f"spec.ports[{i}].name", f"{port.name!r} is used twice"))
        if (port.port, port.protocol) in numbers:
            errors.append((f"spec.ports[{i}]", f"{port.port}/{port.protocol} is used twice"))
        names.add(port.name)
        numbers.add((port.port, port.protocol))
    return errors


def _identity(form: Mapping[Any, Any]) -> tuple[str, str]:
    meta = form.get("metadata")
    if not isinstance(meta, dict):
        return "", ""
    return _text(meta.get("namespace")), _text(meta.get("name"))


def _text(value: object) -> str:
    """What a name says; nothing for collections, which no name is."""
    if isinstance(value, str):
        return value
    return _brief(value) if isinstance(value, int | float) and value else ""


def _unknown_kind(api_version: object, kind: object) -> tuple[str, str]:
    if not isinstance(kind, str) or not kind:
        return ("kind", "is missing" if kind is None else f"{_brief(kind) or 'this'} is not a kind")
    if not isinstance(api_version, str) or not api_version:
        return (
            "apiVersion",
            "is missing"
            if api_version is None
            else f"{_brief(api_version) or 'this'} is no version",
        )
    known = ", ".join(f"{version} {name}" for version, name in KINDS)
    return ("kind", f"{api_version} {kind} is not known here (known are {known})")


def _errors(error: Exception) -> list[tuple[str, str]]:
    if not isinstance(error, ValidationError):
        return [("", unexpected(error))]
    found = error.errors(include_url=False, include_context=False)
    return [
        (_path(item["loc"]), _message(item["msg"], item["type"], item["input"])) for item in found
    ]


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _message(message: str, kind: str, value: object) -> str:
    if kind == "missing":
        return "is missing"
    text = message.removeprefix("Value error, ").removeprefix("Input ")
    shown = _brief(value)
    return text if not shown or shown in text else f"{text}, not {shown}"


def _brief(value: object) -> str:
    """The value as Python writes it, if that is short, else nothing.

    Looks at no more of the value than would be shown: aliases make a small file a large value.
    """
    left, stack = _MOST_SHOWN, [value]
    while stack:
        part = stack.pop()
        left -= 1
        if isinstance(part, str):
            left -= len(part)
        elif isinstance(part, int):
            left -= part.bit_length() // 4
        elif isinstance(part, Mapping | list):
            left -= len(part)
            if left >= 0:
                stack += [*part.keys(), *part.values()] if isinstance(part, Mapping) else part
        if left < 0:
            return ""
    shown = repr(value)
    return shown if len(shown) <= _MOST_SHOWN else ""

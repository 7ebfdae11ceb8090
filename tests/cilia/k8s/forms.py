# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects in plain form, as short as a test needs them."""

from __future__ import annotations

from typing import Any

import yaml

from cilia.k8s.objects import EndpointSlice, K8sObject, Service, decode

Form = dict[str, Any]


def service_form(
    name: str = "echo", ip: str | None = "10.96.0.1", namespace: str = "test", **spec: Any
) -> Form:
    """A ClusterIP service with one port; ``spec`` adds to it."""
    spec = {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}], **spec}
    if ip is not None:
        spec = {"clusterIP": ip, **spec}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def slice_form(
    name: str = "echo-1",
    service: str | None = "echo",
    addresses: tuple[str, ...] = ("10.1.0.1",),
    namespace: str = "test",
    **fields: Any,
) -> Form:
    """A slice with one endpoint an address, all ready; ``fields`` replace its parts."""
    labels = {"kubernetes.io/service-name": service} if service else {}
    family = "IPv6" if addresses and ":" in addresses[0] else "IPv4"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "addressType": family,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in addresses],
        **fields,
    }


def with_metadata(form: Form, **metadata: Any) -> Form:
    return {**form, "metadata": {**form["metadata"], **metadata}}


def service(*args: Any, **fields: Any) -> Service:
    return as_service(service_form(*args, **fields))


def as_service(form: Form) -> Service:
    obj = decode(form)
    assert isinstance(obj, Service)
    return obj


def endpoint_slice(*args: Any, **fields: Any) -> EndpointSlice:
    obj = decode(slice_form(*args, **fields))
    assert isinstance(obj, EndpointSlice)
    return obj


def yaml_of(*forms: Form) -> bytes:
    return yaml.safe_dump_all(forms).encode()


def names(objects: list[K8sObject]) -> list[str]:
    return [obj.metadata.name for obj in objects]

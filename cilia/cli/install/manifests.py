# SPDX-License-Identifier: Apache-2.0
"""The chart, rendered, with the few values that `cilia install` lets a person set.

Whoever wants to set more takes the chart itself (install/helm/cilia).
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

__all__ = ["Values", "manifests", "reachable"]

# What the rendering has in place of the API server's address and of images.
PLACEHOLDER: Final = "https://api-server.invalid:6443"
AGENT, OPERATOR = "cilia", "cilia-operator"


@dataclass(frozen=True)
class Values:
    api_server: str
    namespace: str = "kube-system"
    image: str = ""
    operator_image: str = ""
    operator_replicas: int = 2
    options: Mapping[str, str] = field(default_factory=dict)


def reachable(url: str) -> bool:
    """Whether nodes can mean the same by this address: not the loopback of whoever asks."""
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host not in ("", "localhost")


def manifests(values: Values) -> list[dict[str, Any]]:
    """Every object, in an order in which each finds what it needs."""
    text = resources.files(__package__).joinpath("cilia.yaml").read_text()
    forms = [form for form in yaml.safe_load_all(text) if form]
    made = [_with_values(form, values) for form in forms]
    if values.namespace != "kube-system":
        made.insert(0, _namespace(values.namespace))
    return made


def _namespace(name: str) -> dict[str, Any]:
    """Pods with host network and privileges are allowed there."""
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _with_values(form: dict[str, Any], values: Values) -> dict[str, Any]:
    made: dict[str, Any] = _replaced(copy.deepcopy(form), values)
    kind, name = made["kind"], made["metadata"]["name"]
    if kind == "ConfigMap":
        made["data"] |= values.options
    elif kind == "DaemonSet":
        _set_images(made, values.image)
        annotations = made["spec"]["template"]["metadata"]["annotations"]
        annotations["cilia.io/config-checksum"] = _checksum(values)
    elif kind == "Deployment" and name == OPERATOR:
        _set_images(made, values.operator_image)
        made["spec"]["replicas"] = values.operator_replicas
    return made


def _checksum(values: Values) -> str:
    """Changes when options do, so that agents start anew."""
    import hashlib

    text = yaml.safe_dump([values.api_server, dict(sorted(values.options.items()))])
    return hashlib.sha256(text.encode()).hexdigest()


def _replaced(value: Any, values: Values) -> Any:
    """The value with address and namespace in all of its texts."""
    if isinstance(value, dict):
        replaced = {key: _replaced(inner, values) for key, inner in value.items()}
        if replaced.get("namespace") == "kube-system":
            replaced["namespace"] = values.namespace
        return replaced
    if isinstance(value, list):
        return [_replaced(inner, values) for inner in value]
    if isinstance(value, str):
        text = value.replace(PLACEHOLDER, values.api_server)
        if text == "--k8s-namespace=kube-system":
            return f"--k8s-namespace={values.namespace}"
        return text
    return value


def _set_images(form: dict[str, Any], image: str) -> None:
    pod = form["spec"]["template"]["spec"]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        container["image"] = image or container["image"]

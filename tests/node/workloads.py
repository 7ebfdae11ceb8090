# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects that tests write: servers, their Services, clients, and the cluster's DNS."""

from __future__ import annotations

from typing import Any

from .images import COREDNS, WORKLOAD
from .plan import DNS_ADDRESS

PORT = 8080  # where the workload serves, TCP and UDP
Object = dict[str, Any]


def server(**container: Any) -> Object:
    """The container of a server: not ready at once after SIGTERM, but serving five seconds more,
    until no client is sent to it any longer."""
    return {
        "name": "server",
        "image": WORKLOAD,
        "args": ["serve", "--drain=5s"],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 1},
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": PORT},
            "periodSeconds": 1,
            "failureThreshold": 2,
        },
        **container,
    }


def deployment(name: str, replicas: int, **container: Any) -> Object:
    """Servers that are spread over the nodes, labelled `app: NAME`."""
    labels = {"app": name}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [server(**container)],
                    "topologySpreadConstraints": [spread],
                },
            },
        },
    }


def server_pod(name: str, node: str, **container: Any) -> Object:
    """One server on a node of choice, labelled `app: NAME`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [server(**container)]},
    }


def client_pod(name: str, node: str) -> Object:
    """A pod that does nothing of itself: tests run their clients in it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "client", "image": WORKLOAD, "args": ["pause"]}],
        },
    }


def service(name: str, *, app: str | None = None, **spec: Any) -> Object:
    """A Service of both families where the cluster has them: port 80, TCP and UDP."""
    ports = [
        {"name": protocol.lower(), "port": 80, "targetPort": PORT, "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    body = {"selector": {"app": app or name}, "ports": ports, "ipFamilyPolicy": "PreferDualStack"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {**body, **spec},
    }


COREFILE = """
.:53 {
    errors
    health :8181
    ready :8182
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods verified
    }
    cache 5
}
"""


def dns() -> list[Object]:
    """CoreDNS behind the address that kubelet writes into each pod's resolv.conf."""
    names = {"name": "coredns", "namespace": "kube-system"}
    labels = {"k8s-app": "kube-dns"}
    read = {"verbs": ["list", "watch"]}
    ports = [
        {"name": f"dns-{protocol.lower()}", "port": 53, "protocol": protocol}
        for protocol in ("UDP", "TCP")
    ]
    container = {
        "name": "coredns",
        "image": COREDNS,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8182}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": names},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], **read},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], **read},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", **names}],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": names,
            "data": {"Corefile": COREFILE},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": names,
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS_ADDRESS, "selector": labels, "ports": ports},
        },
    ]

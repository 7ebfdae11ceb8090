# SPDX-License-Identifier: Apache-2.0
"""One object of each kind with every field that is read, to be spoilt; and values that spoil."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from cilia.loadbalancer import annotations as ann

Form = dict[str, Any]

NODE = "here"
ANNOTATIONS = {
    ann.TYPE: "ClusterIP,NodePort",
    ann.NODE: "x",
    ann.NODE_SELECTOR: "zone in (a, b), !gpu",
    ann.FORWARDING_MODE: "snat",
    ann.ALGORITHM: "maglev",
    ann.SOURCE_RANGES_POLICY: "deny",
    ann.PROXY_DELEGATION: "delegate-if-local",
    ann.SCALE_TO_ZERO: "true",
    ann.WEIGHT: "10",
    ann.GLOBAL: "true",
    ann.SHARED: "true",
    ann.AFFINITY: "local",
    ann.TOPOLOGY_MODE: "auto",
    ann.TOPOLOGY_HINTS: "auto",
    "endpoints.kubernetes.io/last-change-trigger-time": "2024-01-01T00:00:00Z",
}


def metadata(name: str, rng: Random, **fields: Any) -> Form:
    notes = rng.sample(sorted(ANNOTATIONS), rng.choice((0, 1, 3)))
    return {
        "name": name,
        "namespace": "hostile",
        "uid": "u-1",
        "resourceVersion": "7",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "labels": {"app": "bad", "kubernetes.io/service-name": "bad"},
        "annotations": {note: ANNOTATIONS[note] for note in notes},
        "managedFields": [{"time": "2024-01-01T00:00:00Z", "manager": "x"}],
        **fields,
    }


def service(rng: Random) -> Form:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("bad", rng),
        "spec": {
            "type": rng.choice(("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")),
            "clusterIP": "10.96.66.1",
            "clusterIPs": ["10.96.66.1", "fd00::66"],
            "externalIPs": ["192.0.2.66"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30066},
                {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30067},
            ],
            "selector": {"app": "bad"},
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
            "externalTrafficPolicy": rng.choice(("Local", "Cluster")),
            "internalTrafficPolicy": rng.choice(("Local", "Cluster")),
            "healthCheckNodePort": 30068,
            "loadBalancerClass": "x",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
            "trafficDistribution": "PreferClose",
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.67", "ipMode": "VIP"}]}},
    }


def endpoint_slice(rng: Random) -> Form:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata("bad-1", rng),
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {
                "addresses": ["10.1.66.1"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": NODE,
                "zone": "a",
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": NODE}]},
            }
        ],
    }


def pod(rng: Random) -> Form:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata("bad-pod", rng),
        "spec": {
            "nodeName": NODE,
            "hostNetwork": False,
            "serviceAccountName": "x",
            "containers": [
                {
                    "name": "c",
                    "ports": [
                        {
                            "name": "http",
                            "containerPort": 8080,
                            "hostPort": 8066,
                            "hostIP": rng.choice(("", "127.0.0.1", "192.0.2.9")),
                            "protocol": "TCP",
                        }
                    ],
                }
            ],
            "initContainers": [{"name": "i"}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.1.66.1",
            "podIPs": [{"ip": "10.1.66.1"}, {"ip": "fd00::1:66"}],
            "hostIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def node(rng: Random) -> Form:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata("bad-node", rng),
        "spec": {"podCIDR": "10.1.66.0/24", "podCIDRs": ["10.1.66.0/24"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "192.0.2.66"},
                {"type": "Hostname", "address": "bad"},
            ]
        },
    }


def namespace(rng: Random) -> Form:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata("bad-ns", rng)}


def policy(rng: Random) -> Form:
    frontend: Form = {
        "addressMatcher": {
            "ip": "169.254.66.1",
            "toPorts": [{"port": "53", "protocol": "UDP", "name": "dns"}],
        }
    }
    if rng.random() < 0.5:
        frontend = {"serviceMatcher": {"serviceName": "bad", "namespace": "hostile"}}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": metadata("bad-lrp", rng),
        "spec": {
            "redirectFrontend": frontend,
            "redirectBackend": {
                "localEndpointSelector": {
                    "matchLabels": {"k8s:app": "bad"},
                    "matchExpressions": [{"key": "app", "operator": "In", "values": ["bad"]}],
                },
                "toPorts": [{"port": "8080", "protocol": "TCP", "name": "dns"}],
            },
            "skipRedirectFromBackend": True,
            "description": "x",
        },
    }


KINDS: tuple[Callable[[Random], Form], ...] = (
    *(service, service, service, endpoint_slice, endpoint_slice),
    *(pod, node, namespace, policy),
)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# What stands where something else is expected; each is made anew, since it may be spoilt further.
VALUES: tuple[Callable[[Random], Any], ...] = (
    lambda rng: None,
    lambda rng: rng.choice((True, False)),
    lambda rng: rng.choice((-1, 0, 1, 65535, 65536, 1 << 31, 1 << 63, -(1 << 64), 10**40)),
    lambda rng: rng.choice((0.5, 80.0, 1e300, -0.0)),
    lambda rng: "",
    lambda rng: rng.choice(("0", "00080", "-1", "9" * 5000, "1e5", "0x50", "²", "80 ")),
    lambda rng: rng.choice(("x", "X", "-", ".", "a/b", "a/b/c", "/", "..", "hostile/bad", "a:b")),
    lambda rng: rng.choice(("\0", "\n", "\x1b]0;x\x07", "\u202e", "\ud7ff\ue000", "🙂", "a\tb")),
    lambda rng: rng.choice(("x", ",", "(", " ", "\0", "=", "é")) * rng.choice((254, 70_000)),
    lambda rng: rng.choice(("10.96.0.1", "0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1")),
    lambda rng: rng.choice(("999.1.1.1", "fe80::1%eth0", "10.0.0.1/8", "::ffff:10.96.0.1", "1")),
    lambda rng: rng.choice(("10.0.0.0/33", "::/0", "0.0.0.0/0", "10.0.0.1/255.0.0.0", " ::/1 ")),
    lambda rng: rng.choice(("None", "none", "Local", "TCP", "tcp", "SCTP", "ANY", "IPv6", "FQDN")),
    lambda rng: rng.choice(("0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "soon", "2024")),
    lambda rng: rng.choice(("a in (b", "a in (b,c),d", "!a=b", ",,,", "a=b,c=d,", "()", "k8s:")),
    lambda rng: [],
    lambda rng: {},
    lambda rng: {"": ""},
    lambda rng: nested(rng.choice((2, 60, 70, 190))),
    lambda rng: [None],
    lambda rng: [rng.choice((1, "x", "10.0.0.1", {}))] * rng.choice((3, 2000)),
    lambda rng: {f"k{i}": f"v{i}" for i in range(rng.choice((3, 2000)))},
    lambda rng: {"ip": "10.96.0.1", "name": "bad", "port": 80},
)

# SPDX-License-Identifier: Apache-2.0
"""Objects of a cluster that come, change and go, and faulty ones among them.

The number of objects is limited by places, one a possible object; who comes back to a place has
another name than everybody before it. What is kept by name would grow then, though nothing else
does. Addresses and node ports belong to the place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from cilia.loadbalancer import annotations as notes_of
from tests.e2e.nodes import pod_address
from tests.e2e.passes import service_address

Form = dict[str, Any]

NODE: Final = "node1"
NAMESPACE: Final = "soak"
#: By kind.
PLACES: Final = {
    "Service": 30,
    "EndpointSlice": 60,
    "Node": 8,
    "Pod": 20,
    "Namespace": 6,
    "CiliumLocalRedirectPolicy": 6,
}
TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
FAMILIES: Final = {4: "IPv4", 6: "IPv6"}
#: Addresses of Services, behind those of the fixed ones: the first of each kind.
CLUSTER, BALANCER, EXTERNAL = 60, 110, 160
NODE_PORT, HEALTH_PORT = 30_200, 31_200
#: Refused, or ignored with a word; an API server admits them.
FAULTS: Final = {
    notes_of.NODE_SELECTOR: "in (((",
    notes_of.FORWARDING_MODE: "pigeon",
    notes_of.ALGORITHM: "guess",
    notes_of.WEIGHT: "9" * 40,
    notes_of.SOURCE_RANGES_POLICY: "maybe",
}


class Place(NamedTuple):
    """Where at most one object is at a time."""

    kind: str
    number: int


class Objects:
    """Makes the next object of a place."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        #: How many there were, by place.
        self._turns: dict[Place, int] = {}
        self._make: dict[str, Callable[[int, str], Form]] = {
            "Service": self._service,
            "EndpointSlice": self._slice,
            "Node": self._node,
            "Pod": self._pod,
            "Namespace": self._namespace,
            "CiliumLocalRedirectPolicy": self._policy,
        }

    def any_place(self) -> Place:
        """Return a place; kinds with many places come up more often."""
        kind = self._rng.choices(list(PLACES), list(PLACES.values()))[0]
        return Place(kind, self._rng.randrange(PLACES[kind]))

    def appear(self, place: Place) -> Form:
        """Return an object with a name that none had before."""
        self._turns[place] = self._turns.get(place, 0) + 1
        return self.change(place)

    def change(self, place: Place) -> Form:
        """Return the object of a place as it may look now."""
        return self._make[place.kind](place.number, self._name(place))

    def _name(self, place: Place) -> str:
        return f"{place.kind.lower()[:4]}-{place.number}-{self._turns.get(place, 0)}"

    def _some(self, share: float) -> bool:
        return self._rng.random() < share

    def _meta(self, name: str, **more: Any) -> Form:
        notes = {"soak/change": str(self._rng.randrange(1 << 30))}
        if self._some(0.1):
            fault = self._rng.choice(list(FAULTS))
            notes[fault] = FAULTS[fault]
        return {"name": name, "namespace": NAMESPACE, "annotations": notes, **more}

    # -- kinds --

    def _service(self, number: int, name: str) -> Form:
        """Its type belongs to the name: an API server changes some of them only."""
        kind = TYPES[(number + self._turns[Place("Service", number)]) % len(TYPES)]
        families = ((4, 6), (4,), (6,))[number % 3]
        metadata = self._meta(name, labels={"app": name})
        if kind == "ExternalName":
            spec: Form = {"type": kind, "externalName": "db.example.org"}
            return _form("v1", "Service", metadata, spec)
        spec = {
            "type": kind,
            **_addresses(number, families),
            "selector": {"app": name},
            "sessionAffinity": self._rng.choice(("None", "ClientIP")),
            "internalTrafficPolicy": self._rng.choice(("Cluster", "Local")),
            "ports": [self._port(kind, number, i) for i in range(2)],
        }
        if kind == "LoadBalancer":
            spec["allocateLoadBalancerNodePorts"] = True
            spec["externalTrafficPolicy"] = "Local" if number % 2 else "Cluster"
            if number % 2:
                spec["healthCheckNodePort"] = HEALTH_PORT + number
            if self._some(0.3):
                spec["loadBalancerSourceRanges"] = ["192.0.2.0/24", "fd00:2::/64"]
        if self._some(0.3) and 4 in families:
            spec["externalIPs"] = [service_address(EXTERNAL + number)[4]]
        form = _form("v1", "Service", metadata, spec)
        if kind == "LoadBalancer" and self._some(0.8):
            ingress = [{"ip": service_address(BALANCER + number)[family]} for family in families]
            form["status"] = {"loadBalancer": {"ingress": ingress}}
        return form

    def _port(self, kind: str, number: int, i: int) -> Form:
        port = {
            "name": f"p{i}",
            "protocol": ("TCP", "UDP")[i],
            "port": 80 + self._rng.randrange(3),
            "targetPort": 8080,
        }
        return port if kind == "ClusterIP" else {**port, "nodePort": NODE_PORT + 2 * number + i}

    def _slice(self, number: int, name: str) -> Form:
        """Two places a Service, one a family; pods that serve, and some that do not exist."""
        of, family = number // 2, (4, 6)[number % 2]
        service = self._name(Place("Service", of))
        pods = [pod_address(1, family), pod_address(2, family)]
        pods += [pod_address(1, family)[:-2] + str(20 + n) for n in range(6)]
        chosen = self._rng.sample(pods, self._rng.randrange(len(pods)))
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": self._meta(name, labels={"kubernetes.io/service-name": service}),
            "addressType": FAMILIES[family],
            "ports": [
                {"name": f"p{i}", "protocol": ("TCP", "UDP")[i], "port": 8080} for i in range(2)
            ],
            "endpoints": [self._endpoint(address) for address in chosen],
        }

    def _endpoint(self, address: str) -> Form:
        ready, terminating = self._some(0.7), self._some(0.2)
        form: Form = {
            "addresses": [address],
            "nodeName": NODE if self._some(0.5) else "node2",
            "conditions": {
                "ready": ready and not terminating,
                "serving": ready,
                "terminating": terminating,
            },
        }
        if self._some(0.3):
            form |= {"zone": "a", "hints": {"forZones": [{"name": self._rng.choice("ab")}]}}
        return form

    def _node(self, number: int, name: str) -> Form:
        addresses = [
            {"type": "InternalIP", "address": f"192.0.2.{100 + number + 20 * self._some(0.5)}"},
            {"type": "Hostname", "address": name},
        ]
        form = _form("v1", "Node", self._meta(name), {"podCIDR": f"10.245.{number}.0/24"})
        del form["metadata"]["namespace"]
        form["metadata"]["labels"] = {"topology.kubernetes.io/zone": self._rng.choice("ab")}
        form["status"] = {"addresses": addresses}
        return form

    def _pod(self, number: int, name: str) -> Form:
        port: Form = {"containerPort": 8080, "protocol": "TCP"}
        if number % 4 == 0:
            port["hostPort"] = 9000 + number
        spec = {
            "nodeName": NODE if number % 2 == 0 else "node2",
            "containers": [{"name": "main", "image": "example.org/none", "ports": [port]}],
        }
        ready = "True" if self._some(0.7) else "False"
        form = _form("v1", "Pod", self._meta(name, labels={"app": f"pod-{number % 3}"}), spec)
        form["status"] = {
            "phase": "Running",
            "podIP": f"10.244.1.{100 + number}",
            "podIPs": [{"ip": f"10.244.1.{100 + number}"}],
            "conditions": [{"type": "Ready", "status": ready}],
        }
        return form

    def _namespace(self, number: int, name: str) -> Form:
        metadata = self._meta(name)
        del metadata["namespace"]
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

    def _policy(self, number: int, name: str) -> Form:
        port = {"port": "80", "protocol": "TCP"}
        spec = {
            "redirectFrontend": {
                "addressMatcher": {"ip": f"169.254.{number}.1", "toPorts": [port]}
            },
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": {"app": f"pod-{number % 3}"}},
                "toPorts": [{**port, "port": "8080"}],
            },
        }
        return _form("cilium.io/v2", "CiliumLocalRedirectPolicy", self._meta(name), spec)


def broken_texts(rng: random.Random) -> Iterator[str]:
    """Yield the contents of files that hold no object."""
    yield "kind: [Service\n"
    yield "\x00\xff not text"
    yield f"apiVersion: v1\nkind: Service\nmetadata: {{name: {rng.randrange(9)}}}\nspec: 7\n"
    yield "apiVersion: v1\nkind: Unheard\nmetadata: {name: a}\n"
    yield "---\n" * rng.randrange(1, 50)


def _form(version: str, kind: str, metadata: Form, spec: Form) -> Form:
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _addresses(number: int, families: tuple[int, ...]) -> Form:
    addresses = [service_address(CLUSTER + number)[family] for family in families]
    return {
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ipFamilies": [FAMILIES[family] for family in families],
        "ipFamilyPolicy": "RequireDualStack" if len(families) > 1 else "SingleStack",
    }

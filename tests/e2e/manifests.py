# SPDX-License-Identifier: Apache-2.0
"""Kubernetes YAML for the tests, made from few words."""

from __future__ import annotations

from collections.abc import Sequence

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: test}}
spec:
  clusterIP: "{address}"
  clusterIPs: ["{address}"]
  ports:
    - {{name: tcp, protocol: TCP, port: {port}, targetPort: 8080}}
    - {{name: udp, protocol: UDP, port: {port}, targetPort: 8080}}
"""

SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: test
  labels: {{kubernetes.io/service-name: {name}}}
addressType: {family}
ports:
  - {{name: tcp, protocol: TCP, port: 8080}}
  - {{name: udp, protocol: UDP, port: 8080}}
endpoints:
{endpoints}
"""

NODE = """\
apiVersion: v1
kind: Node
metadata: {{name: {name}}}
status:
  addresses: [{addresses}]
"""


def node(name: str, addresses: Sequence[str]) -> str:
    """A Node object with these addresses, all internal ones."""
    shown = ", ".join(f'{{type: InternalIP, address: "{address}"}}' for address in addresses)
    return NODE.format(name=name, addresses=shown)


def service(name: str, address: str, port: int = 80) -> str:
    return SERVICE.format(name=name, address=address, port=port)


def endpoint_slice(name: str, addresses: Sequence[str]) -> str:
    family = "IPv6" if any(":" in address for address in addresses) else "IPv4"
    endpoints = "\n".join(f'  - addresses: ["{address}"]' for address in addresses) or "  []"
    return SLICE.format(name=name, family=family, endpoints=endpoints)


def served(name: str, address: str, backends: Sequence[str], port: int = 80) -> str:
    """A Service and its slice in one file."""
    return service(name, address, port) + "---\n" + endpoint_slice(name, backends)

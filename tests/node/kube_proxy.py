# SPDX-License-Identifier: Apache-2.0
"""The real kube-proxy as a program of a node, in nftables mode: what a cluster moves from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.kube.assets import asset

from .machine import Machine, NodeProgram
from .plan import POD_CIDRS

READY_TIMEOUT_S = 240.0


def _configuration(node: str, kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": ",".join(POD_CIDRS),
        # Sizes of the machine's connection tracking: not this node's to change.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


class KubeProxy:
    """kube-proxy of one node. Its rules stay when it ends; `remove_rules` takes them away."""

    def __init__(self, machine: Machine, kubeconfig: Path) -> None:
        self.machine = machine
        path = machine.directory / "kube-proxy.json"
        path.write_text(json.dumps(_configuration(machine.name, kubeconfig), indent=2))
        self.config = f"--config={path}"
        self.program: NodeProgram = machine.program("kube-proxy", asset("kube-proxy"), self.config)

    def start(self, *addresses: str) -> None:
        """Returns when its rules name these addresses."""
        self.program.start()
        wanted = set(addresses)
        self.program.wait_until(lambda: wanted <= self.addresses(), READY_TIMEOUT_S)

    def addresses(self) -> set[str]:
        """Every address that a rule, a set or a map of its tables names."""
        words = self.rules().replace(",", " ").split()
        return {word for word in words if "." in word or ":" in word}

    def rules(self) -> str:
        return self.machine.run("nft", "list", "ruleset")

    def stop(self) -> None:
        self.program.stop()

    def remove_rules(self) -> None:
        self.machine.run(asset("kube-proxy"), self.config, "--cleanup")

# SPDX-License-Identifier: Apache-2.0
"""A container runtime with a list of several plugins: real programs, called one after the other."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cilia.endpoints.cni.forwarder import NAME, built
from tests.e2e.pods import CNIFailed, Pod, PodNode
from tests.kube.assets import asset


class Runtime:
    """Does with a list what libcni does, in the namespace of a node."""

    def __init__(self, node: PodNode, path: Path) -> None:
        """`path`: of the list, read at each call."""
        self.node, self.path = node, path
        # A runtime keeps what each ADD had and what came out of it.
        self._results: dict[str, dict[str, Any]] = {}
        self._ports: dict[str, list[dict[str, Any]]] = {}

    def add(self, name: str, ports: Sequence[dict[str, Any]] = ()) -> Pod:
        """Make a pod: object, namespace, network."""
        self.node.write_pod(name)
        pod = self.node.namespace(name)
        self._ports[name] = list(ports)
        self.add_to(pod)
        return pod

    def add_to(self, pod: Pod) -> None:
        """Call the plugins for a namespace that is there. Raises: CNIFailed."""
        previous: dict[str, Any] = {}
        for plugin in self._list["plugins"]:
            previous = self._call("ADD", pod, plugin, previous)
        pod.result = self._results[pod.name] = previous

    def check(self, pod: Pod) -> None:
        for plugin in self._list["plugins"]:
            self._call("CHECK", pod, plugin, pod.result)

    def delete(self, pod: Pod) -> None:
        """May be called again."""
        for plugin in reversed(self._list["plugins"]):
            self._call("DEL", pod, plugin, self._results.get(pod.name, {}))

    @property
    def _list(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.path.read_text())
        return read

    def _call(
        self, command: str, pod: Pod, plugin: dict[str, Any], previous: dict[str, Any]
    ) -> dict[str, Any]:
        """Raises: CNIFailed."""
        whole = self._list
        config = {**plugin, "cniVersion": whole["cniVersion"], "name": whole["name"]}
        if config.pop("capabilities", {}).get("portMappings"):
            config["runtimeConfig"] = {"portMappings": self._ports.get(pod.name, [])}
        if previous:
            config["prevResult"] = previous
        plugins = asset("cni")
        program = built() if plugin["type"] == NAME else plugins / plugin["type"]
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(plugins),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME={pod.name};"
            f"K8S_POD_UID=uid-{pod.name}",
        }
        done = subprocess.run(
            [*self.node.world.entering(), str(program)],
            input=json.dumps(config),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CNIFailed(done.returncode, done.stdout)
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return found

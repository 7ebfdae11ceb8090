# SPDX-License-Identifier: Apache-2.0
"""Pods of one node as a container runtime makes them: a network namespace, then `cilia-cni`.

The node is the namespace of a `World`; the plugin's program is called as a runtime calls it. Pod
objects come from manifests, as a cluster would have them before the runtime is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cilia.endpoints.cni.forwarder import built
from cilia.linux.netns import NetNS
from statedb.web.remote import RemoteDB
from tests.e2e.world import World, world
from tests.kernel import Kernel

NODE = "node-one"
POOLS = ("10.207.0.0/24", "fd00:207::/120")
FAMILIES = (4, 6)

NODE_OBJECT = """\
apiVersion: v1
kind: Node
metadata: {{name: {name}}}
spec: {{podCIDRs: [{pools}]}}
status: {{addresses: [{addresses}]}}
"""

POD_OBJECT = """\
apiVersion: v1
kind: Pod
metadata:
  {{name: {name}, namespace: test, uid: {uid}, labels: {{app: {app}}}, annotations: {annotations}}}
spec: {{nodeName: {node}, containers: [{{name: main}}]}}
---
"""

NAMESPACE_OBJECT = """\
apiVersion: v1
kind: Namespace
metadata: {name: test, labels: {team: red}}
"""


class CNIFailed(Exception):
    """The plugin's answer was an error."""

    def __init__(self, status: int, output: str) -> None:
        super().__init__(f"status {status}: {output}")
        self.status = status
        self.form: dict[str, Any] = json.loads(output) if output else {}

    @property
    def code(self) -> int:
        return int(self.form.get("code", 0))


def _pod_object(name: str, app: str, annotations: str) -> str:
    return POD_OBJECT.format(
        name=name, uid=f"uid-{name}", app=app, node=NODE, annotations=annotations
    )


class Pod(Kernel):
    """A pod's namespace and what the runtime calls its container."""

    def __init__(self, name: str, netns: NetNS, path: str) -> None:
        super().__init__(netns)
        self.name = name
        self.path = path
        self.container_id = f"{name}-{os.getpid()}"
        self.result: dict[str, Any] = {}

    def address(self, family: int) -> str:
        (found,) = [
            ip["address"].partition("/")[0]
            for ip in self.result["ips"]
            if (":" in ip["address"]) == (family == 6)
        ]
        return str(found)


class PodNode:
    """A node whose pods' network is ours."""

    def __init__(self, on: World, pools: Sequence[str] = POOLS, address: str = "") -> None:
        """`address`: that of the Node object."""
        self.world = on
        self._address = address
        self.pods: dict[str, Pod] = {}
        self._objects: dict[str, str] = {}
        self._pools = pools
        self.write_node()
        on.write("namespace.yaml", NAMESPACE_OBJECT)

    def write_node(self, pools: Sequence[str] = ()) -> None:
        """Write the Node object, with other prefixes if there are some."""
        self._pools = pools or self._pools
        quoted = ", ".join(f'"{pool}"' for pool in self._pools)
        addresses = f"{{type: InternalIP, address: {self._address}}}" if self._address else ""
        text = NODE_OBJECT.format(name=NODE, pools=quoted, addresses=addresses)
        self.world.write("node.yaml", text)

    @property
    def node(self) -> Kernel:
        return Kernel(NetNS.named(self.world.namespace))

    def start(self, *extra: str) -> subprocess.Popen[bytes]:
        process = self.world.start_agent("--pod-network", f"--node-name={NODE}", *extra)
        self.world.eventually(self.world.ready, 30.0)
        return process

    def write_pod(
        self, name: str, app: str = "web", annotations: Mapping[str, str] | None = None
    ) -> None:
        """Make the Pod object, as the API server has it before the runtime is asked."""
        noted = json.dumps(annotations or {})
        self._objects[name] = _pod_object(name, app, noted)
        self._write()

    def write_pods(self, names: Iterable[str]) -> None:
        """Make many Pod objects in one go."""
        self._objects |= {name: _pod_object(name, "web", "{}") for name in names}
        self._write()

    def remove_pods(self, names: Iterable[str]) -> None:
        for name in names:
            del self._objects[name]
        self._write()

    def remove_pod(self, name: str) -> None:
        self.remove_pods([name])

    def _write(self) -> None:
        self.world.write("pods.yaml", "".join(self._objects.values()) or "---\n")

    def namespace(self, name: str, own: str = "") -> Pod:
        """A network namespace with nothing in it; `own`: a name for it and its container."""
        full = f"{self.world.namespace}-{own or name}"
        netns = NetNS.create(full)
        pod = self.pods[name] = Pod(name, netns, f"/run/netns/{full}")
        pod.container_id = f"{own or name}-{os.getpid()}"
        pod.ip("link set lo up")
        return pod

    def add(self, name: str, app: str = "web") -> Pod:
        """Make a pod: object, namespace, network."""
        self.write_pod(name, app)
        pod = self.namespace(name)
        pod.result = self.cni("ADD", pod)
        return pod

    def delete(self, name: str) -> None:
        """Take a pod away, in the runtime's order."""
        pod = self.pods.pop(name)
        self.cni("DEL", pod)
        self.forget(pod)

    def forget(self, pod: Pod) -> None:
        pod.netns.close()
        NetNS.remove(Path(pod.path).name)

    def cni(self, command: str, pod: Pod, **changes: Any) -> dict[str, Any]:
        """Call the plugin. Raises: CNIFailed."""
        with self.plugin(command, pod, **changes) as process:
            output, _ = process.communicate()
        if process.returncode:
            raise CNIFailed(process.returncode, output)
        found: dict[str, Any] = json.loads(output) if output else {}
        return found

    def plugin(self, command: str, pod: Pod, **changes: Any) -> subprocess.Popen[str]:
        """Start the plugin with its request."""
        config: dict[str, Any] = {"cniVersion": "1.0.0", "name": "cilia", "type": "cilia-cni"}
        if command in ("CHECK", "DEL") and pod.result:
            config["prevResult"] = pod.result
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME={pod.name};"
            f"K8S_POD_UID=uid-{pod.name}",
            "CILIA_SOCK": str(self.world.state_dir / "cni.sock"),
        }
        environment |= changes.pop("environment", {})
        process = subprocess.Popen(
            [str(built())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(config | changes))
        process.stdin.close()
        process.stdin = None
        return process

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table of the agent."""
        db = RemoteDB(str(self.world.state_dir / "cilia.sock"))
        return list(db.table(table).all(db.read_txn()))

    def close(self) -> None:
        for pod in self.pods.values():
            self.forget(pod)


@contextmanager
def pod_node(
    directory: Path, name: str, pools: Sequence[str] = POOLS, address: str = ""
) -> Iterator[PodNode]:
    """A node without pods; the agent is not started."""
    with world(directory, name) as on:
        made = PodNode(on, pools, address)
        try:
            yield made
        finally:
            made.close()

# SPDX-License-Identifier: Apache-2.0
"""The whole cluster: a fabric, a control plane on it, two nodes, a client outside, the images.

    with Cluster("try", directory) as cluster:
        cluster.api.apply(manifests)
        cluster.start_agents()
        cluster.create("default", deployment("web", 2), service("web"))
        cluster.on_node("n1").ask("http://10.96.0.1/")
        cluster.nodes["n1"].run(...)        # any program of the node

Order of a start: network, API server, the controllers, then the nodes; a node is given its pod
ranges by the controllers, after which its bridge plugin is configured and it becomes ready. With
`pod_network=True` there is no bridge plugin: the agents make the nodes ready. All is told to
`leftovers` first, so that it can be removed however this process ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from cilia.k8s.crds import POD_NETWORK_DEFINITIONS, Definition
from tables.loadbalancer.backends import BackendState
from tests.e2e.world import Inside
from tests.kube.apiserver import ADMIN, ApiServer, Settings, free_port
from tests.kube.assets import asset
from tests.kube.programs import Program

from . import images, leftovers, workloads
from .account import agents_token
from .agent import Agent
from .callers import Caller, in_namespaces, outside
from .fabric import make_fabric, plug_in, route, unplug
from .machine import REPOSITORY, Machine
from .node_settings import CNI_CONFIGURATION, CNI_PROGRAMS
from .plan import (
    API_PORT,
    BRIDGE_V4,
    CLIENT,
    EXTERNAL_CIDRS,
    NODES,
    POD_CIDRS,
    SERVICE_CIDRS,
    Member,
)

CONTROLLERS, SCHEDULER = "system:kube-controller-manager", "system:kube-scheduler"
KUBE_PROXY = "system:kube-proxy"
WAIT_S = 240.0
#: Options of agents that are the network of the pods, too.
POD_NETWORK = (
    *("--pod-network", "--ipam=kubernetes"),
    *(f"--cni-conf-path={CNI_CONFIGURATION}", f"--cni-bin-path={CNI_PROGRAMS}"),
)
T = TypeVar("T")


class Cluster:
    """`name` is unique on this machine; `say` is told what happens, for people who wait.

    `pod_network`: cilia is the network of the pods too, else Debian's bridge plugin is.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        dual_stack: bool = True,
        pod_network: bool = False,
        detached: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name, self.directory, self.detached, self.say = name, directory, detached, say
        self.families = 2 if dual_stack else 1
        self.pod_network = pod_network
        self.started = time.monotonic()
        self.fabric = f"{name}-fabric"
        self._enter_fabric = ["nsenter", f"--net=/run/netns/{self.fabric}"]
        self.nodes: dict[str, Machine] = {}
        self.agents: dict[str, Agent] = {}
        self.programs: list[Program] = []

    def __enter__(self) -> Cluster:
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            self.start()
            on_failure.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Returns when both nodes are ready, or, with `pod_network`, wait for their agents."""
        members = [*NODES, CLIENT]
        self.record = leftovers.Record(
            self.name,
            namespaces=[self.fabric, *(f"{self.name}-{member.name}" for member in members)],
            cgroups=[f"{self.name}-{node.name}" for node in NODES],
            maker=0 if self.detached else None,
            directories=[str(self.directory)] if self.detached else [],
        )
        self.record.save()
        self._tell("the network")
        make_fabric(self.fabric)
        for member in members:
            self._plug_in(member)
        # As a router of the cluster's owner would: all addresses of Services lead to one node.
        first, *_ = NODES
        route(f"{self.name}-{CLIENT.name}", first, [*EXTERNAL_CIDRS, *SERVICE_CIDRS])
        self._tell("the control plane")
        self._start_control_plane()
        self._tell("the nodes")
        self._images()
        self._start_nodes()
        self._connect_pods()
        if not self.pod_network:
            self.wait_nodes()
        self._tell("ready")

    def _plug_in(self, member: Member) -> None:
        forwards = member != CLIENT and not self.pod_network  # cilia sees to it that its nodes do
        plug_in(self.fabric, f"{self.name}-{member.name}", member, forwards=forwards)

    def reboot(self, name: str, *, keeps_disk: bool) -> None:
        """End all of a node as a loss of power does, and start it, with or without its old disk.

        Its control groups, its network and its memory are made anew; returns when it is ready.
        """
        node = self.nodes[name]
        node.crash(keeps_disk=keeps_disk)
        unplug(self.fabric, node.namespace, node.member)
        self._plug_in(node.member)
        node.boot()
        self.record.add(node.init)
        for archive in () if keeps_disk else self.archives:
            node.import_image(archive)
        node.kubelet.start()
        for other in self.nodes.values():
            if other != node:
                route(node.namespace, other.member, self._pod_cidrs(other))
        self.agents[name].start()
        self.wait_nodes()

    def restart_api_server(self, end: Callable[[Program], None] = Program.stop) -> None:
        """Over the etcd that is there."""
        end(self.api.server)
        self.api.start_server()
        self.record.add(self.api.server)

    def wait_nodes(self) -> None:
        """Wait until every node says that it is ready."""
        self.api.kubectl("wait", "node", "--all", "--for=condition=Ready", f"--timeout={WAIT_S}s")

    def close(self) -> None:
        """Remove everything that the record names, and wait for our own children."""
        self.record.remove()
        for node in self.nodes.values():
            self.programs += node.programs
        for program in self.programs:
            program.reap()

    def _tell(self, what: str) -> None:
        self.say(f"{time.monotonic() - self.started:5.1f} s  {what}")

    def _start_control_plane(self) -> None:
        door = free_port()
        nodes = {f"system:node:{node.name}": ["system:nodes"] for node in NODES}
        target = f"{BRIDGE_V4}:{API_PORT}"
        self.relay = Program(
            "relay",
            [sys.executable, "-m", "tests.node.relay", str(door), self.fabric, target],
            self.directory / "relay.log",
            directory=REPOSITORY,
            detached=self.detached,
        )
        self._start(self.relay)
        self.api = ApiServer(
            self.directory,
            Settings(
                bind_address="0.0.0.0",
                advertise_address=BRIDGE_V4,
                port=API_PORT,
                service_cidrs=",".join(SERVICE_CIDRS[: self.families]),
                users={**nodes, CONTROLLERS: [], SCHEDULER: [], KUBE_PROXY: []},
                flags=["--kubelet-preferred-address-types=InternalIP"],
                enter=self._enter_fabric,
                reached_at=f"https://127.0.0.1:{door}",
                detached=self.detached,
            ),
        )
        self.record.directories.append(str(self.api.memory))
        self.record.save()
        with ExitStack() as on_failure:
            on_failure.callback(self.api.stop)
            self.api.start()
            on_failure.pop_all()
        self.programs += [self.api.etcd, self.api.server]
        self.record.add(*self.programs)
        self._start_controllers()

    def _start_controllers(self) -> None:
        ranges = [
            f"--cluster-cidr={','.join(POD_CIDRS[: self.families])}",
            f"--service-cluster-ip-range={','.join(SERVICE_CIDRS[: self.families])}",
        ]
        key = self.api.directory / "service-account.key"
        accounts = [
            "--use-service-account-credentials",
            f"--root-ca-file={self.api.certificate}",
            f"--service-account-private-key-file={key}",
        ]
        self._start_controller(
            "kube-controller-manager", CONTROLLERS, *ranges, *accounts, "--allocate-node-cidrs"
        )
        self._start_controller("kube-scheduler", SCHEDULER)

    def _start_controller(self, name: str, user: str, *flags: str) -> None:
        common = [f"--kubeconfig={self.kubeconfig_inside(user)}", "--leader-elect=false"]
        program = Program(
            name,
            [*self._enter_fabric, asset(name), *common, "--secure-port=0", *flags],
            self.directory / f"{name}.log",
            detached=self.detached,
        )
        self._start(program)

    def _start(self, program: Program) -> None:
        program.start()
        self.programs.append(program)
        self.record.add(program)

    def kubeconfig_inside(self, user: str = ADMIN) -> Path:
        """A kubeconfig for programs on the fabric, as one of the cluster's users."""
        return self.write_kubeconfig(user.replace(":", "-"), self.api.tokens[user])

    def write_kubeconfig(self, name: str, token: str) -> Path:
        """A kubeconfig for programs on the fabric, with any token."""
        path = self.directory / f"{name}.inside.kubeconfig"
        self.api.write_kubeconfig(path, token, server=f"https://{BRIDGE_V4}:{API_PORT}")
        return path

    def _images(self) -> None:
        workload, coredns = self.directory / "workload.tar", self.directory / "coredns.tar"
        files = {"workload": asset("workload"), **images.shell_files()}
        images.write_image(workload, images.WORKLOAD, files, ["/workload"], "pause")
        images.write_image(coredns, images.COREDNS, {"coredns": asset("coredns")}, ["/coredns"])
        self.archives = [workload, coredns]

    def _start_nodes(self) -> None:
        """Only commands that end run beside each other: programs end with the thread that starts
        them (prctl(2), PR_SET_PDEATHSIG)."""
        for member in NODES:
            namespace = f"{self.name}-{member.name}"
            machine = Machine(self.name, self.directory, namespace, member, detached=self.detached)
            self.nodes[member.name] = machine
            machine.boot()
            self.record.add(machine.init)
            addresses = [member.v4, member.v6][: self.families]
            machine.start_kubelet(self.kubeconfig_inside(f"system:node:{member.name}"), addresses)
        with ThreadPoolExecutor() as pool:
            imports = [
                pool.submit(node.import_image, archive)
                for node in self.nodes.values()
                for archive in self.archives
            ]
            for done in imports:
                done.result()

    def _connect_pods(self) -> None:
        """When the controllers have given each node its ranges: routes, and the bridge plugin."""
        for node in self.nodes.values():
            cidrs = self.eventually(partial(self._pod_cidrs, node), "pod ranges")
            for other in (self.fabric, *(n.namespace for n in self.nodes.values() if n != node)):
                route(other, node.member, cidrs)
            if not self.pod_network:
                node.write_cni(cidrs)

    def _pod_cidrs(self, node: Machine) -> list[str]:
        try:
            status, body = self.api.request("GET", f"/api/v1/nodes/{node.name}")
        except TimeoutError:  # the busiest moment of a start: the caller asks again
            return []
        found: list[str] = json.loads(body)["spec"].get("podCIDRs", []) if status == 200 else []
        return found

    def eventually(self, look: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
        """Look often until there is something to see; what was seen.

        Raises:
            TimeoutError: nothing within `timeout_s`; says where the logs are.
        """
        deadline = time.monotonic() + timeout_s
        while not (seen := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {timeout_s} s; logs: {self.directory}")
            time.sleep(0.05)
        return seen

    def start_agents(self, *options: str) -> None:
        """Our agent on both nodes, in place of kube-proxy, with the rights of its account.

        Returns when both nodes are ready.
        """
        token = agents_token(self.api, pod_network=self.pod_network)
        kubeconfig = self.write_kubeconfig("agent", token)
        if self.pod_network:
            self.register(*POD_NETWORK_DEFINITIONS)
            options = (*POD_NETWORK, *options)
        for node in self.nodes.values():
            self.agents[node.name] = Agent(node, kubeconfig, *options)
            self.agents[node.name].start()
        self.wait_nodes()
        self._tell("the agents")

    def register(self, *definitions: Definition) -> None:
        """Make kinds, as the operator does; returns when they are established."""
        self.create("kube-system", *(definition.manifest() for definition in definitions))
        for definition in definitions:
            asked = ("wait", f"crd/{definition.name}", "--for=condition=Established")
            self.kubectl("kube-system", *asked)

    def start_dns(self) -> None:
        """CoreDNS as a Service, which pods' resolv.conf names."""
        self.create("kube-system", *workloads.dns())
        self.kubectl("kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s")
        self._tell("the names")

    def create(self, namespace: str, *objects: workloads.Object) -> None:
        """Write objects into a namespace; they replace what has their names."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        apply = ("apply", "--server-side", "--force-conflicts", "-f", "-")
        self.api.kubectl(*apply, f"--namespace={namespace}", text=json.dumps(items))

    def kubectl(self, namespace: str, *arguments: str) -> str:
        return self.api.kubectl(f"--namespace={namespace}", *arguments)

    def get(self, namespace: str, kind: str, name: str) -> Any:
        return json.loads(self.kubectl(namespace, "get", kind, name, "-o=json"))

    def in_force(self, namespace: str, name: str, backends: Mapping[str, int]) -> None:
        """Wait until each node's agent has all frontends of a Service, with so many backends
        that are active: those of pods that are not ready yet are rows too.
        """

        def written(agent: Agent) -> bool:
            rows = agent.frontends(namespace, name)
            wanted = ("done", backends[agent.machine.name])
            seen = {(row["Status"]["kind"], _active(row["Backends"])) for row in rows}
            return seen == {wanted}

        for agent in self.agents.values():
            self.eventually(partial(written, agent), f"{namespace}/{name} in force")

    def make_namespace(self, name: str) -> None:
        """A namespace in which pods may be written: with its service account."""
        self.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
        path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.eventually(lambda: self.api.request("GET", path)[0] == 200, "the service account")

    def wait_ready(self, namespace: str, *pods: str, timeout_s: int = 60) -> None:
        named = [f"pod/{name}" for name in pods]
        self.kubectl(namespace, "wait", "--for=condition=Ready", f"--timeout={timeout_s}s", *named)

    def pod(self, namespace: str, name: str) -> Caller:
        """A client inside a running pod."""
        node, pid, procs = self._process(namespace, name)
        enter = in_namespaces(pid, procs, "mount", "net", "uts")
        return Caller(f"pod {name} on {node}", enter, "/workload")

    def at_pod(self, namespace: str, name: str) -> Caller:
        """A client in a running pod's network, with this machine's files and commands."""
        node, pid, procs = self._process(namespace, name)
        enter = in_namespaces(pid, procs, "net")
        return Caller(f"network of pod {name} on {node}", enter, str(asset("workload")))

    def process_at_pod(self, namespace: str, name: str) -> Inside:
        """Start a process in a running pod's network and control group; whoever calls ends it."""
        _, pid, procs = self._process(namespace, name)
        return Inside(f"/proc/{pid}/ns/net", Path(procs).parent)

    def _process(self, namespace: str, name: str) -> tuple[str, int, str]:
        """The node of a running pod, its first process, and the file that lets others join it."""
        found = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        (status,) = found["status"]["containerStatuses"]
        container = status["containerID"].removeprefix("containerd://")
        node = self.nodes[found["spec"]["nodeName"]]
        (procs,) = node.group.glob(f"kubepods/**/{container}/cgroup.procs")
        return node.name, int(procs.read_text().split()[0]), str(procs)

    def on_node(self, name: str) -> Caller:
        """A client that is a program of the node."""
        return Caller(f"node {name}", self.nodes[name].command(), str(asset("workload")))

    def outside(self) -> Caller:
        """A client on a machine that is no part of the cluster."""
        return outside(f"{self.name}-{CLIENT.name}")


def _active(backends: Sequence[Any]) -> int:
    return sum(backend["State"] == BackendState.ACTIVE for backend in backends)

# SPDX-License-Identifier: Apache-2.0
"""One node: its namespaces, and the programs that run in it as on a machine of their own.

What a node writes is on a tmpfs of its own mount namespace, at /run, and its processes have their
own PID namespace: both are gone with its first process. kubelet sets parameters of the kernel,
which is the whole machine's, unless they are as it wishes: the node sees files that say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cilia.linux.cgroup import find_cgroup2
from tests.kube.assets import asset
from tests.kube.programs import Program

from .cgroups import SYSTEM, make_node_group, remove_when_empty
from .node_settings import (
    CNI_CONFIGURATION,
    CNI_PROGRAMS,
    CONTAINERD,
    bridge_plugin,
    containerd,
    kubelet,
)
from .plan import Member

REPOSITORY = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 240.0
END_TIMEOUT_S = 20.0
# What a machine has on its disk: it may outlive a loss of power.
ON_DISK = ("/run/node/containerd", "/run/node/kubelet")
# Read by kubelet instead of the machine's: what it would otherwise write there.
KUBELET_WANTS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}
SETUP = """
set -e
hostname "$NODE"
mount --make-rprivate /  # nothing reaches the machine; below, pods may mount for their node
mount --make-rshared /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/netns /run/lock /run/node/settings /run/node/cni /run/node/plugins
echo "nameserver 127.0.0.1" > /run/node/resolv.conf
for wish in $WISHES; do
    shown=/run/node/settings/$(echo "${wish%%=*}" | tr / -)
    echo "${wish##*=}" > "$shown"
    mount --bind "$shown" "/proc/sys/${wish%%=*}"
done
touch "$READY"
exec "$PAUSE" pause
"""


def only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _copy(into: Path, *directories: Path) -> None:
    """Without what is mounted below them."""
    subprocess.run(["cp", "-a", "-x", *map(str, directories), str(into)], check=True)


class NodeProgram(Program):
    """A program inside the node; nsenter, our own child, waits for it and ends as it does."""

    def __init__(self, name: str, machine: Machine, words: Sequence[str | Path]) -> None:
        log = machine.directory / f"{name}.log"
        super().__init__(name, words, log, directory=REPOSITORY, detached=machine.detached)
        self._machine, self._words = machine, words

    def start(self) -> None:
        self.command = self._machine.command(*self._words)  # its namespaces are others after a boot
        super().start()

    @property
    def pid(self) -> int:
        return only_child(super().pid)


class Machine:
    """A node of the cluster. `directory` keeps its logs and configurations, outside the node.

    The network namespace is made by the fabric; `boot` makes the others.
    """

    def __init__(
        self, cluster: str, directory: Path, namespace: str, member: Member, *, detached: bool
    ) -> None:
        self.member, self.namespace, self.detached = member, namespace, detached
        self.name = member.name
        self.directory = directory / member.name
        self.directory.mkdir()
        self.cgroup = f"{cluster}-{member.name}"
        self.init = self._init_program()
        self.programs: list[Program] = [self.init]
        config = self._write("containerd.toml", containerd(asset("runc")))
        self.containerd = self.program("containerd", asset("containerd"), "--config", config)

    def boot(self) -> None:
        """Make the namespaces and start containerd."""
        (self.directory / "ready").unlink(missing_ok=True)
        make_node_group(self.cgroup)
        self.init.start()
        self.init.wait_until((self.directory / "ready").exists, READY_TIMEOUT_S)
        for kept in self._disk.glob("*"):
            _copy(self.path("/run/node"), kept)
            shutil.rmtree(kept)
        self.install_plugins("loopback")
        self.start_containerd()

    def crash(self, *, keeps_disk: bool) -> None:
        """End its first process, upon which the kernel ends all others and drops all mounts."""
        if keeps_disk:
            self.containerd.kill()
            self.kubelet.kill()
            self._disk.mkdir(exist_ok=True)
            _copy(self._disk, *(self.path(path) for path in ON_DISK))
        self.init.kill()
        for program in self.programs:
            program.reap()
        remove_when_empty(self.cgroup, END_TIMEOUT_S)

    def start_containerd(self) -> None:
        self.containerd.start()
        self.containerd.wait_until(self.path(CONTAINERD).is_socket, READY_TIMEOUT_S)

    def start_kubelet(self, kubeconfig: Path, addresses: Sequence[str]) -> None:
        config = self._write("kubelet.json", json.dumps(kubelet(f"/{self.cgroup}"), indent=2))
        self.kubelet = self.program(
            *("kubelet", asset("kubelet"), f"--config={config}", f"--kubeconfig={kubeconfig}"),
            *("--root-dir=/run/node/kubelet", "--cert-dir=/run/node/pki"),
            *(f"--hostname-override={self.name}", f"--node-ip={','.join(addresses)}"),
        )
        self.kubelet.start()

    def install_plugins(self, *names: str) -> None:
        """Have the node find these plugins of Debian's."""
        for name in names:
            self.path(f"{CNI_PROGRAMS}/{name}").symlink_to(asset("cni") / name)

    def write_cni(self, pod_cidrs: Sequence[str]) -> None:
        """Configure the bridge plugin, upon which containerd says that the network is ready."""
        self.install_plugins("bridge", "host-local")
        target = self.path(f"{CNI_CONFIGURATION}/10-bridge.conflist")
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps(bridge_plugin(pod_cidrs)))
        temporary.rename(target)

    def import_image(self, archive: Path) -> None:
        self.run(asset("ctr"), f"--address={CONTAINERD}", "-n=k8s.io", "images", "import", archive)

    @property
    def pid(self) -> int:
        """The node's first process, as the machine below numbers it."""
        return only_child(self.init.pid)

    @property
    def _disk(self) -> Path:
        return self.directory / "disk"

    @property
    def group(self) -> Path:
        """Its control group in the unified hierarchy."""
        root = find_cgroup2()
        assert root is not None, "no cgroup2 hierarchy is mounted"
        return root / self.cgroup

    def path(self, inside: str) -> Path:
        """A file of the node, as a path that leads there from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def command(self, *words: str | Path) -> list[str]:
        """What runs `words` on the node, in its control group. The process is nsenter's child."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", "--pid", "--"]
        procs = str(self.group / SYSTEM / "cgroup.procs")
        here = [procs, str(REPOSITORY), *map(str, words)]
        return [*enter, "sh", "-c", 'echo 0 > "$0" && cd "$1" && shift && exec "$@"', *here]

    def program(
        self, name: str, *words: str | Path, environment: Mapping[str, str] | None = None
    ) -> NodeProgram:
        """A program of the node, not yet started; its log is outside."""
        named = [f"{key}={value}" for key, value in (environment or {}).items()]
        search = f"PATH={asset('containerd').parent}:{os.environ['PATH']}"
        made = NodeProgram(name, self, ["env", search, *named, *words])
        self.programs.append(made)
        return made

    def run(self, *words: str | Path, timeout_s: float = 120.0) -> str:
        """Run a command on the node; what it printed.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, timeout=timeout_s
        )
        if done.returncode != 0:
            said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise RuntimeError(f"{self.name}: {' '.join(map(str, words))}: {said}")
        return done.stdout

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def _init_program(self) -> Program:
        wishes = " ".join(f"{path}={value}" for path, value in KUBELET_WANTS.items())
        return Program(
            f"{self.name}'s first process",
            [
                *("env", f"NODE={self.name}", f"WISHES={wishes}", f"PAUSE={asset('workload')}"),
                *(f"READY={self.directory / 'ready'}", "nsenter"),
                *(f"--net=/run/netns/{self.namespace}", "unshare", "--mount", "--uts", "--pid"),
                *("--fork", "--kill-child", "sh", "-c", SETUP),
            ],
            self.directory / "init.log",
            detached=self.detached,
        )

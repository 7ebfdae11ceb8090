# SPDX-License-Identifier: Apache-2.0
"""Configurations of a node's programs: containerd, kubelet and the bridge plugin.

Each line that is not obvious says why: several nodes share one kernel here, without its
CAP_SYS_RESOURCE, and control groups are those of version 1 beside the unified hierarchy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .images import WORKLOAD
from .plan import DNS_ADDRESS

CONTAINERD = "/run/containerd/containerd.sock"
CNI_CONFIGURATION = "/run/node/cni"
CNI_PROGRAMS = "/run/node/plugins"


def containerd(runc: Path) -> str:
    """The configuration, in TOML."""
    return f"""
version = 2
root = "/run/node/containerd"
state = "/run/containerd"
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{WORKLOAD}"
restrict_oom_score_adj = true  # lowering it needs a capability that may not be there
disable_apparmor = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = "{CNI_CONFIGURATION}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
"""


def kubelet(cgroup: str) -> dict[str, Any]:
    """The configuration; below `cgroup` it makes the groups of the pods."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        # The fabric has no way in: whoever reaches kubelet may ask it.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,  # as with containerd
        # A shared disk that is full is not this node's: never evict.
        "evictionHard": dict.fromkeys(
            (
                *("memory.available", "nodefs.available", "nodefs.inodesFree"),
                *("imagefs.available", "imagefs.inodesFree"),
            ),
            "0%",
        ),
        "makeIPTablesUtilChains": False,
        "resolvConf": "/run/node/resolv.conf",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "podLogsDir": "/run/node/pod-logs",
        "volumePluginDir": "/run/node/volume-plugins",
        "registerNode": True,
    }


def bridge_plugin(pod_cidrs: Sequence[str]) -> dict[str, Any]:
    """The plugin chain for pods with an address of each range."""
    addresses = {
        "type": "host-local",
        "dataDir": "/run/node/addresses",
        "ranges": [[{"subnet": cidr}] for cidr in pod_cidrs],
        "routes": [{"dst": "::/0" if ":" in cidr else "0.0.0.0/0"} for cidr in pod_cidrs],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,  # a pod may be its own backend
        "ipam": addresses,
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}

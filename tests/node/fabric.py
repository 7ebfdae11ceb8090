# SPDX-License-Identifier: Apache-2.0
"""The network between the nodes: a namespace with a bridge, a cable to each member, no way out.

What a node does not translate reaches the fabric and is refused there. The API server lives in the
fabric's namespace, beside the bridge.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from cilia.linux.netns import NetNS

from .plan import BRIDGE_V4, BRIDGE_V6, POD_CIDRS, SERVICE_CIDRS, Member


def configure(namespace: str, *lines: str) -> None:
    """Run lines of `ip` inside a namespace.

    Raises:
        RuntimeError: one was refused; with what ip said.
    """
    done = subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{namespace}: {done.stderr.strip()}\n" + "\n".join(lines))


def make_fabric(namespace: str) -> None:
    NetNS.create(namespace).close()
    configure(
        namespace,
        "link set lo up",
        "link add br0 type bridge",
        f"address add {BRIDGE_V4}/24 dev br0",
        f"address add {BRIDGE_V6}/64 dev br0 nodad",
        "link set br0 up",
        *(f"route add unreachable {cidr}" for cidr in (*POD_CIDRS, *SERVICE_CIDRS)),
    )


def plug_in(fabric: str, namespace: str, member: Member, *, forwards: bool) -> None:
    """A new namespace for `member`, with eth0 on the bridge and its default route to the fabric.

    `forwards`: it is a router for its pods.
    """
    with NetNS.create(namespace) as made:
        if forwards:
            made.run(_forward)
    cable = _cable(member)
    configure(
        fabric,
        f"link add {cable} type veth peer name eth0 address {member.mac} netns {namespace}",
        f"link set {cable} master br0 up",
    )
    configure(
        namespace,
        "link set lo up",
        f"address add {member.v4}/24 dev eth0",
        f"address add {member.v6}/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add default via {BRIDGE_V4}",
        f"route add default via {BRIDGE_V6}",
    )


def unplug(fabric: str, namespace: str, member: Member) -> None:
    """Remove the cable and the namespace, in which no process is any longer."""
    configure(fabric, f"link delete {_cable(member)}")
    NetNS.remove(namespace)


def _cable(member: Member) -> str:
    return f"to-{member.name}"


def _forward() -> None:
    bridged = [f"bridge/bridge-nf-call-{tables}" for tables in ("iptables", "ip6tables")]
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", *bridged):  # kube-proxy's need
        with open(f"/proc/sys/net/{path}", "w") as setting:
            setting.write("1")


def route(namespace: str, member: Member, cidrs: Sequence[str]) -> None:
    """The way from `namespace` to these addresses leads over the node `member`."""
    configure(
        namespace,
        *(f"route replace {cidr} via {member.v6 if ':' in cidr else member.v4}" for cidr in cidrs),
    )

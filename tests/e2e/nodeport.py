# SPDX-License-Identifier: Apache-2.0
"""The programs of a node's devices on the namespaces of ``nodes``."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product

from bpf.link import AttachType
from bpf.maps.cluster_nodes import ClusterNodeFlag
from bpf.object import Object
from bpf.program import Program
from tests.bpf import device_hooks
from tests.bpf.datapath_world import Datapath, loaded
from tests.bpf.device_hooks import Held
from tests.bpf.sources import build
from tests.e2e.nodes import SECOND_NET, Nodes, node_address
from tests.kernel import Kernel

#: XDP in the driver of a veth sends only to a peer that has a program, too.
PASS = """
SEC("xdp") int pass_all(struct xdp_md *ctx)
{
    return XDP_PASS;
}
"""

OPT, IPIP = 0, 1


def constants(*, dispatch: int = OPT, dsr: bool = False) -> dict[str, bytes]:
    return {
        "nodeport_dsr": bytes([dsr]),
        "nodeport_dispatch": bytes([dispatch]),
    }


def attach(kernel: Kernel, device: str, program: Program, hook: AttachType) -> Held:
    """Attach to a device of a namespace."""

    def work() -> Held:
        return device_hooks.attach(socket.if_nametoindex(device), program, hook)

    return kernel.netns.run(work)


def hook_device(
    stack: ExitStack, kernel: Kernel, device: str, datapath: Datapath, *, xdp: bool
) -> list[Held]:
    """Both tc programs, and XDP if wanted, on one device."""
    links = [
        attach(kernel, device, datapath.program("from_netdev"), AttachType.TCX_INGRESS),
        attach(kernel, device, datapath.program("to_netdev"), AttachType.TCX_EGRESS),
    ]
    if xdp:
        links.append(attach(kernel, device, datapath.program("from_netdev_xdp"), AttachType.XDP))
    for link in links:
        stack.enter_context(link)
    return links


class AttachedDatapath(Datapath):
    """A datapath on devices."""

    def __init__(self, loaded_on: Datapath, links: list[Held]) -> None:
        super().__init__(loaded_on.lb, loaded_on.maps, loaded_on.programs)
        self.links = links


@contextmanager
def node_datapath(
    nodes: Nodes,
    number: int,
    values: Mapping[str, bytes] | None = None,
    *,
    xdp: bool = False,
    devices: Sequence[str] = ("eth0",),
    entries: Mapping[str, int] | None = None,
) -> Iterator[AttachedDatapath]:
    """Load and attach the programs of a node's devices, with maps of its own."""
    names = ["host", "xdp"] if xdp else ["host"]
    node = nodes.node[number]
    with ExitStack() as stack:
        datapath = stack.enter_context(loaded(names, values or constants(), entries=entries))
        addresses = {
            "eth0": (node_address(number, 4), node_address(number, 6)),
            "eth1": (SECOND_NET[4].format(1), SECOND_NET[6].format(1)),
        }
        for other, family in product(nodes.node, (4, 6)):
            flags = ClusterNodeFlag.SELF if other == number else ClusterNodeFlag.NONE
            datapath.cluster_node(node_address(other, family), flags)
        for device in devices:
            datapath.netdev(nodes.ifindex(node, device), *addresses[device])
        links = [
            link
            for device in devices
            for link in hook_device(stack, node, device, datapath, xdp=xdp)
        ]
        yield AttachedDatapath(datapath, links)


@contextmanager
def pass_programs(nodes: Nodes) -> Iterator[None]:
    """XDP programs that let everything pass, at the peers of the nodes' devices."""
    with ExitStack() as stack:
        obj = stack.enter_context(Object.open("pass", build(PASS)))
        obj.load()
        program = stack.enter_context(obj.program("pass_all"))
        ends = [(nodes.switch, f"port{number}") for number in nodes.node]
        for kernel, device in [*ends, (nodes.second_client, "eth0")]:
            work = partial(attach, kernel, device, program, AttachType.XDP)
            stack.enter_context(work())
        yield

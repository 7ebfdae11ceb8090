# SPDX-License-Identifier: Apache-2.0
"""A pod's device and a node's device with programs that report, and who is behind the addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from bpf.events import Decoder, Event, EventKind
from bpf.maps import endpoints, ipcache
from bpf.maps.listeners import NAME as LISTENERS
from bpf.maps.listeners import Listeners
from bpf.ringbuf import Reader
from tests.bpf.datapath_world import Datapath, loaded, packed
from tests.bpf.host_world import CLIENT, POD, Node, made
from tests.bpf.lxc_world import V4, V6
from tests.bpf.packets import MAC_NODE_ONE, MAC_POD_ONE

#: What BPF_PROG_RUN says that a packet of `PodDevice` came by.
LOOPBACK = 1
#: Of that device.
MAC_LOOPBACK = "00:00:00:00:00:00"
#: Index of the device of the neighbour, which is nobody's here.
ELSEWHERE = 77
MAC_NEIGHBOR, MAC_NEIGHBOR_NODE = "02:00:00:00:00:12", "02:00:00:00:01:12"

#: Identity and number of an endpoint; the world has no number.
OWNER = (300, 7)
NEIGHBOR = (301, 8)
WORLD = (2, 0)
NOBODY = (0, 0)

ON = {"pod_network": b"\1"}
Ends = tuple[tuple[int, int], tuple[int, int]]


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def place(datapath: Datapath, address: str, who: tuple[int, int], ifindex: int = ELSEWHERE) -> None:
    """An address of a workload of this node."""
    identity, number = who
    value = endpoints.EndpointPlace(
        ifindex, identity, number, mac(MAC_NEIGHBOR), mac(MAC_NEIGHBOR_NODE)
    )
    key = endpoints.encode_address(packed(address))
    datapath.maps[endpoints.BY_ADDRESS].update(key, endpoints.encode_place(value))


def behind(datapath: Datapath, address: str, length: int, identity: int) -> None:
    """A row of the ipcache."""
    key = ipcache.encode_key(ipcache.IPCacheKey(packed(address), length))
    value = ipcache.encode_value(ipcache.IPCacheValue(identity))
    datapath.maps[ipcache.NAME].update(key, value)


def world_of(datapath: Datapath) -> None:
    for address in ("0.0.0.0", "::"):
        behind(datapath, address, 0, WORLD[0])


def owner(datapath: Datapath, ifindex: int = LOOPBACK) -> None:
    """The workload of the pod's device."""
    value = endpoints.EndpointValue(
        OWNER[1], OWNER[0], packed(V4.pod), packed(V6.pod), mac(MAC_POD_ONE), mac(MAC_NODE_ONE)
    )
    datapath.maps[endpoints.NAME].update(
        endpoints.encode_key(ifindex), endpoints.encode_value(value)
    )


def peopled(datapath: Datapath) -> Datapath:
    """The pod of the device, its neighbour, and the world."""
    owner(datapath)
    for address in (V4.pod, V6.pod):
        place(datapath, address, OWNER, LOOPBACK)
    for address in (V4.backend, V6.backend):
        place(datapath, address, NEIGHBOR)
    world_of(datapath)
    return datapath


@contextmanager
def pod_device(
    constants: Mapping[str, bytes] | None = None, shared: Datapath | None = None
) -> Iterator[Datapath]:
    with loaded(["lxc"], {**ON, **(constants or {})}, shared=shared) as datapath:
        yield peopled(datapath)


@contextmanager
def node_device(
    constants: Mapping[str, bytes] | None = None, hook: str = "tc", dispatch: int = 0
) -> Iterator[Node]:
    """The client outside is of the world, the pod an endpoint."""
    with ExitStack() as stack:
        node = made(hook, dispatch, stack, {**ON, **(constants or {})})
        world_of(node.datapath)
        for family in (4, 6):
            place(node.datapath, POD[family], NEIGHBOR)
            behind(node.datapath, CLIENT[family], 32 if family == 4 else 128, 400)
        yield node


class Listening:
    """The events of a datapath's programs, read as the agent does."""

    def __init__(self, datapath: Datapath, kinds: Iterable[EventKind]) -> None:
        self._listeners = Listeners(datapath.maps[LISTENERS])
        self._reader = Reader.ring(datapath.maps["cilia_events"])
        self.drain()
        self._listeners.kinds = frozenset(kinds)

    def drain(self) -> list[Event]:
        """All that was written since."""
        decoder, found = Decoder(), list[Event]()
        while (batch := self._reader.read()).size:
            found += decoder.decode(batch.records())
        assert (decoder.malformed, decoder.other_version) == (0, 0)
        return found

    def close(self) -> None:
        self._listeners.kinds = frozenset()
        self._reader.close()


@contextmanager
def listening(datapath: Datapath, *kinds: EventKind) -> Iterator[Listening]:
    made = Listening(datapath, kinds)
    try:
        yield made
    finally:
        made.close()


def ends(event: Event) -> Ends:
    """Identity and number of the endpoint of source and destination."""
    return (
        (event.source_identity, event.source_endpoint),
        (event.destination_identity, event.destination_endpoint),
    )

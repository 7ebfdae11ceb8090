# SPDX-License-Identifier: Apache-2.0
"""Packet programs with maps of a test's own: loaded, sized, filled.

All objects of one datapath share their maps by name, as on a node.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from bpf import compile as bpf_compile
from bpf import features
from bpf.errors import NotFound
from bpf.maps import endpoints, lb, masquerade
from bpf.maps.cluster_nodes import NAMES as NODE_MAPS
from bpf.maps.cluster_nodes import ClusterNodeFlag, encode_value
from bpf.maps.endpoints import EndpointPlace
from bpf.maps.lb import BackendValue, LBMaps, RevNatValue, ServiceValue
from bpf.maps.lb_numbers import FrontendType, Scope
from bpf.maps.map import Map
from bpf.maps.percpu import PerCpuMap, sum_counters
from bpf.maps.types import MapType
from bpf.object import Object
from bpf.program import Program
from tables.addressing import Prefix

#: Small enough to be made quickly, large enough for every test.
MAP_ENTRIES = 4096


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def packed_v6_room(address: str | None) -> bytes:
    """16 bytes, an IPv4 address first: as ``struct tuple`` and the constants have it."""
    return packed(address).ljust(16, b"\0") if address else bytes(16)


class Datapath:
    """Objects loaded on one set of maps; ``program`` finds a program of any of them."""

    def __init__(self, lb_maps: LBMaps, maps: dict[str, Map], programs: list[Program]) -> None:
        self.lb = lb_maps
        self.maps = maps
        self.programs = programs

    def program(self, name: str) -> Program:
        (found,) = [program for program in self.programs if program.name == name]
        return found

    def clear(self) -> None:
        """Empty every map that has entries of its own."""
        for raw in self.lb.all():
            raw.clear()
        for name, raw in self.maps.items():
            if name.startswith(("cilia_ct", "cilia_snat", "cilia_frag", "cilia_skip")):
                raw.clear()

    def netdev(self, ifindex: int, address4: str | None, address6: str | None) -> None:
        """A device of the node that leads to clients and other nodes."""
        four = packed(address4) if address4 else bytes(4)
        value = packed_v6_room(address6) + four + bytes(4)
        self.maps["cilia_netdev"].update(ifindex.to_bytes(4, "little"), value)

    def cluster_node(self, address: str, flags: ClusterNodeFlag = ClusterNodeFlag.NONE) -> None:
        """An address of a node of the cluster, as the agent learns them from Node objects."""
        key = packed(address)
        self.maps[NODE_MAPS[len(key) == 16]].update(key, encode_value(flags))

    def workload(self, address: str) -> None:
        """An address of a workload of this node, whose network is ours."""
        place = EndpointPlace(ifindex=7, identity=300, id=7, mac=bytes(6), node_mac=bytes(6))
        key = endpoints.encode_address(packed(address))
        self.maps[endpoints.BY_ADDRESS].update(key, endpoints.encode_place(place))

    def spare(self, prefix: str) -> None:
        """Packets of workloads to a prefix keep their source."""
        key = masquerade.encode_key(Prefix.parse(prefix).ip.packed, Prefix.parse(prefix).length)
        self.maps[masquerade.NAMES[":" in prefix]].update(key, masquerade.VALUE)

    def service(
        self,
        address: str,
        port: int,
        proto: int,
        backends: Sequence[tuple[str, int]],
        *,
        rev_nat: int,
        flags: int = 0,
        scope: int = Scope.EXTERNAL,
        kind: int = FrontendType.NODE_PORT.number,
        timeout_s: int = 0,
        first_id: int = 0,
    ) -> None:
        """Write reverse entry, backends, slots, then the master entry.

        Backend ids count from ``first_id``, or are rev_nat * 100 + slot.
        """
        key = packed(address)
        family = self.lb.of(key)
        family.rev_nat.update(lb.encode_id(rev_nat), lb.encode_rev_nat(RevNatValue(key, port)))
        for slot, (backend, backend_port) in enumerate(backends, start=1):
            number = (first_id or rev_nat * 100 + 1) + slot - 1
            value = BackendValue(packed(backend), backend_port, proto)
            family.backend.update(lb.encode_id(number), lb.encode_backend(value))
            family.service.update(
                lb.encode_service_key(key, port, slot, proto, scope),
                lb.encode_service(ServiceValue(backend_id=number)),
            )
        master = ServiceValue(
            rev_nat=rev_nat,
            count=len(backends),
            flags=flags,
            type=kind,
            affinity_timeout_s=timeout_s,
        )
        family.service.update(
            lb.encode_service_key(key, port, 0, proto, scope), lb.encode_service(master)
        )

    def delete_service(
        self, address: str, port: int, proto: int, *, keep_backends: bool = False
    ) -> None:
        """Remove what `service` wrote, in the order of an agent."""
        family = self.lb.of(packed(address))
        key = partial(lb.encode_service_key, packed(address), port, proto=proto)
        found = family.service.lookup(key(slot=0))
        assert found is not None
        master = lb.decode_service(found)
        family.service.delete(key(slot=0))
        numbers = []
        for slot in range(1, master.count + 1):
            held = family.service.lookup(key(slot=slot))
            assert held is not None
            numbers.append(lb.service_backend_id(held))
            family.service.delete(key(slot=slot))
        family.rev_nat.delete(lb.encode_id(master.rev_nat))
        if not keep_backends:
            family.backend.delete_batch(numbers)


@contextmanager
def loaded(
    names: Iterable[str],
    constants: Mapping[str, bytes] | None = None,
    *,
    entries: Mapping[str, int] | None = None,
    shared: Datapath | None = None,
) -> Iterator[Datapath]:
    """The objects of the project with these names; ``shared``: on the maps of another datapath."""
    with ExitStack() as stack:
        lb_maps = shared.lb if shared else LBMaps.create(MAP_ENTRIES, MAP_ENTRIES)
        if not shared:
            stack.callback(lb_maps.close)
        maps: dict[str, Map] = dict(shared.maps) if shared else {}
        existing = {raw.name: raw for raw in lb_maps.all()} | maps
        programs: list[Program] = []
        for name in names:
            with Object.open(name, bpf_compile.load_object(name)) as obj:
                for definition in obj.map_definitions():
                    found = existing.get(definition.name)
                    if found is not None:
                        obj.set_max_entries(definition.name, found.max_entries)
                        obj.reuse(definition.name, found)  # type: ignore[arg-type]
                    elif definition.max_entries > MAP_ENTRIES:
                        wanted = (entries or {}).get(definition.name, MAP_ENTRIES)
                        if definition.type != MapType.RINGBUF:
                            obj.set_max_entries(definition.name, wanted)
                netfilter = {"netfilter_lookup": bytes([features.has_conntrack_lookup()])}
                for constant, value in {**netfilter, **(constants or {})}.items():
                    _set(obj, constant, value)
                obj.load()
                for definition in obj.map_definitions():
                    if definition.name not in existing:
                        opened = stack.enter_context(obj.map(definition.name))
                        maps[definition.name] = existing[definition.name] = opened
                programs += [stack.enter_context(program) for program in obj.programs()]
        yield Datapath(lb_maps, maps, programs)


def _set(obj: Object, constant: str, value: bytes) -> None:
    """Give a constant to an object that has it."""
    try:
        obj.set_constant(constant, value)
    except NotFound:
        return


def drops(datapath: Datapath) -> dict[int, int]:
    """Refused packets by reason."""
    counts: dict[int, int] = {}
    with PerCpuMap(os.dup(datapath.maps["cilia_metrics"].number)) as metrics:
        for key, values in metrics.items_each():
            reason = int.from_bytes(key[:2], "little", signed=True)
            if reason < 0:
                packets, _ = sum_counters(values, metrics.cpu_value_size)
                counts[reason] = counts.get(reason, 0) + packets
    return counts

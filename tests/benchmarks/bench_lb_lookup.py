# SPDX-License-Identifier: Apache-2.0
"""The load balancer's look-up path by BPF_PROG_RUN, with few and many services.

Programs at the socket cannot be run this way, so a tc program does the same look-ups, many in one
run: frontend, slot, backend. The peer is one look-up in a hash of as many entries. Both are less
the cost of the empty loop. «hot»: 16 services are dialled, as a node does; «all»: every service
alike, which at 100,000 measures the memory of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bpf.maps import lb
from bpf.maps.lb import BackendValue, ServiceValue
from bpf.object import Object
from bpf.program import Program
from tests.benchmarks.report import Report, alternated
from tests.bpf.sources import build

SIZES = (1, 1_000, 100_000)
LOOPS = 256
HOT = 16
PACKET = bytes(64)

SOURCE = """
#include "lib/lb.h"

const volatile __u32 services = 1;

struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, __u32); __type(value, __u64);
         __uint(max_entries, 1); __uint(map_flags, BPF_F_NO_PREALLOC); } plain SEC(".maps");

#define LOOPS 256

SEC("tc") int empty(struct __sk_buff *skb)
{
    __u32 sum = 0;

    for (__u32 i = 0; i < LOOPS; i++)
        sum += bpf_get_prandom_u32() % services;
    return sum & 1;
}

SEC("tc") int path(struct __sk_buff *skb)
{
    __u32 found = 0;

    for (__u32 i = 0; i < LOOPS; i++) {
        __u32 n = bpf_get_prandom_u32() % services;
        struct lb_target target;
        struct lb_service *svc;
        union lb_key key;

        lb_key_of(&key, &n, bpf_htons(80), IPPROTO_TCP, false);
        svc = lb_service(&key, false);
        if (svc && lb_random(&target, &key, svc, false))
            found++;
    }
    return found;
}

SEC("tc") int single(struct __sk_buff *skb)
{
    __u32 found = 0;

    for (__u32 i = 0; i < LOOPS; i++) {
        __u32 n = bpf_get_prandom_u32() % services;

        if (bpf_map_lookup_elem(&plain, &n))
            found++;
    }
    return found;
}
"""


def run(*, peers: bool) -> None:
    report = Report("look-up of a service and its backend; peer: one hash look-up")
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    for size in SIZES:
        for name, dialled in (("hot", min(size, HOT)), ("all", size)):
            with _programs(size, dialled) as programs:
                base, full, one = alternated([partial(_ns, p) for p in programs], 5)
            row = f"lb.lookup.{size}.{name}"
            report.row(row, full - base, "ns", peer=one - base, higher_is_better=False)


def _ns(program: Program) -> float:
    """Nanoseconds a look-up."""
    return program.run(PACKET, repeat=2000).duration_ns / LOOPS


@contextmanager
def _programs(size: int, dialled: int) -> Iterator[tuple[Program, Program, Program]]:
    with Object.open("bench", build(SOURCE)) as obj:
        for definition in obj.map_definitions():
            obj.set_max_entries(definition.name, 2 * size + 1)
        obj.set_constant("services", dialled.to_bytes(4, "little"))
        obj.load()
        _fill(obj, size)
        programs = obj.program("empty"), obj.program("path"), obj.program("single")
        assert programs[1].run(PACKET).retval == LOOPS, "every look-up must find a backend"
        assert programs[2].run(PACKET).retval == LOOPS
        yield programs


def _fill(obj: Object, size: int) -> None:
    addresses = [n.to_bytes(4, "little") for n in range(size)]
    ids = [lb.encode_id(n) for n in range(size)]
    master = lb.encode_service(ServiceValue(rev_nat=1, count=1))
    backends = [lb.encode_backend(BackendValue(address, 80, 6)) for address in addresses]
    slots = [lb.encode_service(ServiceValue(backend_id=n)) for n in range(size)]
    with (
        obj.map("plain") as plain,
        obj.map("cilia_lb4_be") as backend,
        obj.map("cilia_lb4_svc") as service,
    ):
        plain.update_batch(ids, [bytes(8)] * size)
        backend.update_batch(ids, backends)
        service.update_batch([lb.encode_service_key(a, 80, 1, 6) for a in addresses], slots)
        service.update_batch(
            [lb.encode_service_key(a, 80, 0, 6) for a in addresses], [master] * size
        )

# SPDX-License-Identifier: Apache-2.0
"""Source ranges that change together with their policy, after each single write."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from bpf.lb.choice import Chooser, Flow, Outcome, Settings
from bpf.maps import lb
from bpf.maps.lb_numbers import FrontendType
from bpf.maps.raw import RawMap
from tables.addressing import L3n4Addr
from tables.loadbalancer.services import SourceRangesPolicy
from tests.reconcilers.loadbalancer.lb_world import Kernel, LBWorld, frontend, service
from tests.reconcilers.targets import running

VIP = "203.0.113.1:80/TCP"
ALLOW, DENY = SourceRangesPolicy.ALLOW, SourceRangesPolicy.DENY
WIDE, NARROW, OTHER = "192.0.2.0/24", "192.0.2.0/28", "198.51.100.0/24"
CLIENTS = ("192.0.2.1", "192.0.2.99", "198.51.100.1", "203.0.113.99")
POLICIES = [
    (policy, ranges)
    for policy in (ALLOW, DENY)
    for ranges in ((WIDE,), (NARROW,), (OTHER,), (NARROW, OTHER))
]
CHANGES = [(old, new) for old in POLICIES for new in POLICIES if old[0] is not new[0]]


def of(policy: SourceRangesPolicy, ranges: tuple[str, ...]) -> Any:
    svc = service(source_ranges=tuple(map(ip_network, ranges)), source_ranges_policy=policy)
    return frontend(VIP, ["10.244.1.1:8080/TCP"], FrontendType.LOAD_BALANCER, svc)


class LongestMatch:
    """Looks up in a fake map of source ranges as the kernel does."""

    def __init__(self, target: RawMap) -> None:
        self.name = target.name
        self.items = target.items

    def lookup(self, key: bytes) -> bytes | None:
        client = lb.decode_source_range(key)
        found = {
            entry.length: value
            for raw, value in self.items()
            if (entry := lb.decode_source_range(raw)).rev_nat == client.rev_nat
            and ip_address(client.address) in ip_network((entry.address, entry.length))
        }
        return found[max(found)] if found else None


def readable(raw: RawMap) -> Any:
    return LongestMatch(raw) if raw.name.endswith("_src") else raw


def let_in(kernel: Kernel) -> frozenset[str]:
    """The clients outside that the programs would let in."""
    addr, chooser = L3n4Addr.parse(VIP), Chooser(kernel.maps.wrap(readable), Settings())
    flows = {c: Flow(ip_address(c).packed, 40000, addr.ip.packed, 80, 6, True) for c in CLIENTS}
    answers = {client: chooser.explain(flow).outcome for client, flow in flows.items()}
    assert set(answers.values()) <= {Outcome.RANDOM, Outcome.BACKEND, Outcome.REFUSED}, answers
    return frozenset(client for client in CLIENTS if answers[client] is not Outcome.REFUSED)


async def changed(kernel: Kernel, old: Any, new: Any, *, earlier: bool) -> None:
    """Change the policy; `earlier`: the ranges in force are those of an earlier version."""
    world = LBWorld(kernel=kernel)
    world.put(of(*old))
    async with running(world.reconciler):
        await world.settled()
    before = let_in(kernel)
    source = kernel.maps.v4.source
    if earlier:
        for key, _ in list(source.items()):
            source.update(key, lb.PRESENT)
    assert let_in(kernel) == before
    seen: list[frozenset[str]] = []
    kernel.after_write = lambda: seen.append(let_in(kernel))
    world = LBWorld(kernel=kernel)
    world.put(of(*new))
    async with running(world.reconciler):
        await world.settled()
    kernel.after_write = lambda: None
    after = seen[-1]
    expected = {c for c in CLIENTS if named(c, new[1]) is (new[0] is ALLOW)}
    assert after == expected
    for moment in seen:
        assert before & after <= moment <= before | after


def named(client: str, ranges: tuple[str, ...]) -> bool:
    return any(ip_address(client) in ip_network(text) for text in ranges)


@pytest.mark.parametrize("earlier", [False, True], ids=["this version", "an earlier version"])
async def test_no_write_lets_in_whom_both_policies_keep_out(earlier: bool) -> None:
    """Nor does one keep out whom both let in: an agent may be killed after each."""
    for old, new in CHANGES:
        await changed(Kernel(), old, new, earlier=earlier)

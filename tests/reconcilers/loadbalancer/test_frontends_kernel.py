# SPDX-License-Identifier: Apache-2.0
"""The same frontends in the maps of the kernel and in fake ones: equal dumps, empty at the end."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from bpf import features
from bpf.errors import RequirementMissing
from bpf.maps.lb import LBMaps
from bpf.maps.lb_numbers import FrontendType
from bpf.maps.raw import RawMap
from cilia.loadbalancer.options import LoadBalancerOptions
from tables.loadbalancer.frontends import Frontend
from tests.reconcilers.loadbalancer.lb_world import Kernel, LBWorld, frontend, service
from tests.reconcilers.targets import running

pytestmark = pytest.mark.root

SIZES = range(1, 60)
CONFIG = LoadBalancerOptions(bpf_lb_algorithm="maglev", bpf_lb_maglev_table_size=251)


@pytest.fixture
def maps() -> Iterator[LBMaps]:
    """Unpinned maps of the kernel, gone with their descriptors."""
    try:
        features.require_privilege()
    except RequirementMissing as error:
        pytest.skip(str(error))
    made = LBMaps.create(max_entries=1 << 16)
    yield made
    made.close()


def rows(shift: int) -> list[Frontend]:
    """Frontends of 1 to 59 backends in both families; another shift changes most of them."""
    found = [
        frontend("0.0.0.0:30080/TCP", [f"10.244.0.{shift + 1}:80/TCP"], FrontendType.NODE_PORT)
    ]
    for size in SIZES:
        members = range(shift, shift + (size * (shift + 1)) % 60)
        found.append(frontend(f"10.96.0.{size}:80/TCP", [f"10.244.1.{n}:80/TCP" for n in members]))
        found.append(frontend(f"[fd00::{size}]:53/UDP", [f"[2001::{n}]:53/UDP" for n in members]))
    for size in range(1, 6):
        svc = service(
            affinity_timeout_s=60 if size > shift % 3 else 0,
            source_ranges=(
                *(ip_network(f"{shift + n}.0.0.0/8") for n in range(1, size)),
                ip_network(f"fd{shift:02}::/16"),
            ),
        )
        ports = range(8000 + shift, 8000 + shift + size)
        for host, be in (("192.0.2.9", "10.244.2.1"), ("[2001:db8::9]", "[2001::1]")):
            backends = [f"{be}:{port}/TCP" for port in ports]
            kind = FrontendType.LOAD_BALANCER
            found.append(frontend(f"{host}:{size}/TCP", backends, kind, svc))
    return found


async def test_kernel_maps_equal_fake_ones_through_changes_restart_and_removal(
    maps: LBMaps,
) -> None:
    kernel = Kernel()
    kernel.maps = maps
    worlds = [LBWorld(CONFIG, kernel=kernel), LBWorld(CONFIG)]
    for shift in (0, 3, 7):
        for world in worlds:
            world.set_nodes("192.0.2.1")
            async with running(world.reconciler):
                world.put(*rows(shift))
                await world.settled()
        assert worlds[0].dump() == worlds[1].dump()
    kernel.log.clear()
    restarted = LBWorld(CONFIG, kernel=kernel)
    restarted.set_nodes("192.0.2.1")
    restarted.put(*rows(7))
    async with running(restarted.reconciler):
        await restarted.settled()
        assert kernel.log == []
        restarted.remove(*(str(fe.address) for fe in rows(7)))
        await restarted.settled()
    assert restarted.dump() == ""


async def test_batches_reach_the_kernel(maps: LBMaps) -> None:
    """Without the log of single writes between: the batch operations of the real maps."""
    world = LBWorld(CONFIG, kernel=None)
    for target, raw in zip(world.ops._maps.all(), _raw(maps), strict=True):
        target.raw = raw
    world.put(*rows(3))
    async with running(world.reconciler):
        await world.settled()
        fake = LBWorld(CONFIG)
        fake.put(*rows(3))
        async with running(fake.reconciler):
            await fake.settled()
        world.kernel.maps = maps
        assert world.dump() == fake.dump()
        world.remove(*(str(fe.address) for fe in rows(3)))
        await world.settled()
    assert world.dump() == ""


def _raw(maps: LBMaps) -> list[RawMap]:
    return [
        raw
        for family in (maps.v4, maps.v6)
        for raw in (
            family.service,
            family.backend,
            family.rev_nat,
            family.affinity_match,
            family.source,
            family.maglev,
            family.scale_to_zero,
        )
    ]

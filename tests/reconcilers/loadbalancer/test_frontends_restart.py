# SPDX-License-Identifier: Apache-2.0
"""An agent that starts over the maps of an earlier one touches nothing that is right."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from bpf.maps.lb import BackendValue, RevNatValue, encode_backend, encode_id, encode_rev_nat
from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.options import LoadBalancerOptions
from tables.loadbalancer.backends import BackendState
from tables.loadbalancer.frontends import Frontend
from tests.reconcilers.loadbalancer.lb_world import (
    PLAIN,
    Kernel,
    Killed,
    LBWorld,
    backend,
    frontend,
)
from tests.reconcilers.targets import running

VIP = "10.96.0.1:80/TCP"
NODES = ("192.0.2.1", "2001:db8::1")


def rows() -> list[Frontend]:
    """Of each kind one: shared backends, states, both families, a node port."""
    return [
        frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.2:80/TCP"]),
        frontend("10.96.0.2:80/TCP", ["10.244.1.2:80/TCP"]),
        frontend("[fd00::1]:53/UDP", ["[2001::1]:53/UDP"]),
        frontend(
            "0.0.0.0:30080/TCP",
            [
                backend("10.244.1.1:80/TCP"),
                backend("10.244.1.4:80/TCP", BackendState.TERMINATING),
                backend("10.244.1.5:80/TCP", unhealthy=True, unhealthy_updated_at=1.0),
            ],
            FrontendType.NODE_PORT,
        ),
    ]


async def lived(config: LoadBalancerOptions = PLAIN) -> Kernel:
    """What an agent leaves behind that had all rows and got them in an order of its own."""
    world = LBWorld(config)
    world.set_nodes(*NODES)
    async with running(world.reconciler):
        for fe in (*reversed(rows()), frontend("10.96.0.9:80/TCP", ["10.244.1.9:80/TCP"])):
            world.put(fe)
            await world.settled()
        world.remove("10.96.0.9:80/TCP")
        await world.settled()
    world.log.clear()
    return world.kernel


@pytest.mark.parametrize("config", [PLAIN, LoadBalancerOptions()])
async def test_nothing_is_written_when_the_maps_are_right(config: LoadBalancerOptions) -> None:
    kernel = await lived(config)
    before = LBWorld(config, kernel=kernel).dump()
    world = LBWorld(config, kernel=kernel)
    world.set_nodes(*NODES)
    world.put(*rows())
    async with running(world.reconciler):
        await world.settled()
        world.reconciler.prune_now()
        await pruned(world)
    assert kernel.log == []
    assert world.dump() == before
    assert before.count("SVC") >= 15


async def test_prune_takes_foreign_entries_and_spares_wildcards() -> None:
    config = LoadBalancerOptions()
    kernel = await lived(config)
    for family in (kernel.maps.v4, kernel.maps.v6):
        family.rev_nat.update(encode_id(99), next(iter(family.rev_nat.items()))[1])
    world = LBWorld(config, kernel=kernel)
    world.set_nodes(*NODES)
    world.put(*rows())
    async with running(world.reconciler):
        await world.settled()
        await pruned(world)
    assert {(what, key) for what, _, key in kernel.log} == {("delete", encode_id(99))}


async def test_only_the_difference_is_written_when_one_backend_changed() -> None:
    kernel = await lived()
    world = LBWorld(kernel=kernel)
    world.set_nodes(*NODES)
    changed = frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.3:80/TCP"])
    world.put(changed, *rows()[1:])
    async with running(world.reconciler):
        await world.settled()
    assert [(what, name) for what, name, _ in kernel.log] == [
        ("update", "cilia_lb4_be"),
        ("update", "cilia_lb4_svc"),
    ]


async def test_frontend_that_was_deleted_while_the_agent_was_down_is_pruned() -> None:
    kernel = await lived()
    world = LBWorld(kernel=kernel)
    world.set_nodes(*NODES)
    with world.db.write_txn(world.frontends) as wtxn:
        filled = world.frontends.register_initializer(wtxn, "test")
    world.put(*rows()[1:])
    async with running(world.reconciler):
        await world.settled()
        assert kernel.log == []
        assert "10.96.0.1:80/TCP" in world.dump()
        with world.db.write_txn(world.frontends) as wtxn:
            filled(wtxn)
        await pruned(world)
    assert "10.96.0.1" not in world.dump()
    assert {what for what, _, _ in kernel.log} == {"delete"}
    # Master, two slots, reverse entry. Both backends have other frontends.
    assert len(kernel.log) == 4
    assert world.ops.summary()["restoredServiceIDs"] == 0


async def test_new_ids_start_after_all_restored_ones() -> None:
    kernel = Kernel()
    backends, rev_nats = kernel.maps.v4.backend, kernel.maps.v6.rev_nat
    backends.update(encode_id(70), encode_backend(BackendValue(b"\n\xf4\x01\x09", 80, 6)))
    rev_nats.update(encode_id(500), encode_rev_nat(RevNatValue(bytes(16), 80)))
    world = LBWorld(kernel=kernel)
    world.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
    async with running(world.reconciler):
        await world.settled()
    assert "BE: ID=71 ADDR=10.244.1.1:80/TCP" in world.dump()
    assert world.frontend(VIP).id == 501


async def test_rows_with_ids_of_an_earlier_life_get_those_of_the_maps() -> None:
    kernel = await lived()
    world = LBWorld(kernel=kernel)
    world.put(rows()[0])
    async with running(world.reconciler):
        await world.settled()
    assert f"SVC: ID={world.frontend(VIP).id} ADDR={VIP} SLOT=0" in world.dump()


async def test_simulated_restart_within_one_life_writes_nothing() -> None:
    world = LBWorld()
    world.set_nodes(*NODES)
    world.put(*rows())
    async with running(world.reconciler):
        await world.settled()
        before = world.dump()
        world.log.clear()
        world.ops.restore()
        summary = world.ops.summary()
        assert (summary["restoredServiceIDs"], summary["serviceIDs"]) == (5, 0)
        world.put(*rows())
        await world.settled()
    assert world.log == []
    assert world.dump() == before


# -- restored quarantine ------------------------------------------------------------------------


def probed(at: float | None, unhealthy: bool) -> Frontend:
    return frontend(
        VIP,
        ["10.244.1.1:80/TCP", backend("10.244.1.2:80/TCP", unhealthy=unhealthy, **_at(at))],
    )


def _at(at: float | None) -> dict[str, Any]:
    return {"unhealthy_updated_at": at}


async def test_quarantine_lasts_over_a_restart_until_the_backend_is_probed() -> None:
    first = LBWorld()
    first.put(probed(1.0, True))
    async with running(first.reconciler):
        await first.settled()
    first.log.clear()
    world = LBWorld(kernel=first.kernel)
    world.put(probed(None, False))
    async with running(world.reconciler):
        await world.settled()
        await pruned(world)
        assert world.log == []
        assert "COUNT=1 QCOUNT=1" in world.dump()
        assert world.ops.summary()["restoredQuarantines"] == 1
        world.put(probed(2.0, False))
        await world.settled()
        assert "COUNT=2 QCOUNT=0" in world.dump()
        world.put(probed(None, False))
        await world.settled()
    assert "COUNT=2 QCOUNT=0" in world.dump()
    assert world.ops.summary()["restoredQuarantines"] == 0


async def test_terminating_backend_is_no_quarantined_one_after_a_restart() -> None:
    kernel = await lived()
    world = LBWorld(kernel=kernel)
    summary = world.ops.summary()
    # The node port and its one IPv4 address.
    assert summary["restoredQuarantines"] == 2


async def pruned(world: LBWorld) -> None:
    """Until nothing restored is kept any more, which is the last act of a prune."""
    while world.ops.summary()["restoredServiceIDs"] or world.ops._planner.restored.slots:
        await anyio.sleep(0.001)


async def test_id_is_kept_when_the_agent_was_killed_before_the_master_entry() -> None:
    first = LBWorld()
    first.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
    first.kernel.writes_to_live = 3  # backend, reverse entry, slot
    with pytest.raises(Killed):
        first.reconciler._cycle()
    first.kernel.writes_to_live = None
    first.log.clear()
    world = LBWorld(kernel=first.kernel)
    world.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
    async with running(world.reconciler):
        await world.settled()
    assert [(what, name) for what, name, _ in world.log] == [("update", "cilia_lb4_svc")]
    assert world.frontend(VIP).id == 1

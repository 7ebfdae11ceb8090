# SPDX-License-Identifier: Apache-2.0
"""Random rows, faults, kills and restarts: the maps end as the rows say and work throughout."""

from __future__ import annotations

import itertools
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from bpf.maps.lb_numbers import FrontendType
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.frontends import Frontend
from tests.reconcilers.loadbalancer.lb_view import (
    check_reachable,
    seen,
    seen_details,
    wanted,
    wanted_details,
)
from tests.reconcilers.loadbalancer.lb_world import (
    PLAIN,
    Kernel,
    Killed,
    LBWorld,
    backend,
    frontend,
    service,
)

VIPS = ["10.96.0.1:80/TCP", "10.96.0.1:80/UDP", "10.96.0.2:80/TCP/i", "[fd00::1]:80/TCP"]
SURROGATES = ["0.0.0.0:30080/TCP", "[::]:30080/TCP"]
NODES = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
STATES = [state for state in BackendState if state is not BackendState.INVALID]

BACKENDS = st.dictionaries(
    st.integers(1, 5), st.tuples(st.sampled_from(STATES), st.booleans()), max_size=4
)

# The parts of a service that make entries found by the frontend's id.
PARTS = st.fixed_dictionaries(
    {
        "affinity_timeout_s": st.sampled_from([0, 60]),
        "source_ranges": st.lists(
            st.sampled_from(
                [ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16"), ip_network("::/0")]
            ),
            unique=True,
            max_size=2,
        ).map(tuple),
    }
)
CONFIG = PLAIN.model_copy(
    update={
        "bpf_lb_algorithm": "maglev",
        "bpf_lb_external_clusterip": True,
        "bpf_lb_maglev_table_size": 13,
    }
)


def make(
    address: str, chosen: dict[int, tuple[BackendState, bool]], parts: dict[str, Any]
) -> Frontend:
    protocol = address.split("/")[1]
    pattern = "[2001::{}]:80/{}" if "[" in address else "10.244.1.{}:80/{}"
    backends: list[str | Backend] = [
        backend(
            pattern.format(number, protocol),
            state,
            unhealthy=unhealthy,
            unhealthy_updated_at=1.0,
        )
        for number, (state, unhealthy) in chosen.items()
    ]
    kind = FrontendType.NODE_PORT if address in SURROGATES else FrontendType.CLUSTER_IP
    return frontend(address, backends, kind, service(**parts))


class FrontendsModel(RuleBasedStateMachine):
    """The kernel and the rows outlive each agent; an agent may die at any write."""

    faults = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel()
        self.kernel.after_write = self.check
        self.rows: dict[str, Frontend] = {}
        self.nodes: list[str] = []
        self.seeds = itertools.count(1)
        self.start()

    def check(self) -> None:
        check_reachable(self.kernel.maps)

    def start(self) -> None:
        """An agent over the maps as they are; its tables are filled before its first round."""
        # Each look at the clock is a second later: every retry is due in the next round.
        ticks = itertools.count()
        self.world = LBWorld(
            CONFIG, self.faults, self.kernel, seed=next(self.seeds), clock=lambda: next(ticks)
        )
        self.world.set_nodes(*self.nodes)
        self.world.put(*self.rows.values())

    def cycle(self) -> None:
        try:
            self.world.reconciler._cycle()
        except Killed:
            self.kernel.writes_to_live = None
            self.start()

    @rule(address=st.sampled_from(VIPS + SURROGATES), chosen=BACKENDS, parts=PARTS)
    def put(
        self, address: str, chosen: dict[int, tuple[BackendState, bool]], parts: dict[str, Any]
    ) -> None:
        self.rows[address] = make(address, chosen, parts)
        self.world.put(self.rows[address])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.rows)))
        del self.rows[address]
        self.world.remove(address)

    @rule(nodes=st.lists(st.sampled_from(NODES), unique=True))
    def set_nodes(self, nodes: list[str]) -> None:
        self.nodes = nodes
        self.world.set_nodes(*nodes)
        self.world.put(*(self.rows[address] for address in SURROGATES if address in self.rows))

    @rule()
    def round(self) -> None:
        self.cycle()

    @rule(writes=st.integers(0, 12))
    def killed_within_a_round(self, writes: int) -> None:
        self.kernel.writes_to_live = writes
        self.cycle()
        self.kernel.writes_to_live = None

    @rule()
    def restart(self) -> None:
        self.start()

    @rule()
    def prune(self) -> None:
        self.world.reconciler.prune_now()

    def settle(self) -> None:
        revision = self.world.frontends.revision(self.world.db.read_txn())
        for _ in range(400):
            self.cycle()
            mark = self.world.reconciler.progress
            if mark.settled(revision) and not self.world.reconciler._failures:
                return
        raise AssertionError("the reconciler does not come to an end")

    @rule()
    def settled_maps_equal_the_rows(self) -> None:
        self.settle()
        frontends, backends = seen(self.kernel.maps)
        expected_frontends, expected_backends = wanted(self.rows.values(), self.nodes)
        assert frontends == expected_frontends
        assert backends == expected_backends
        assert seen_details(self.kernel.maps) == wanted_details(
            self.rows.values(), self.nodes, CONFIG.bpf_lb_maglev_table_size
        )
        rows = self.world.frontends.all(self.world.db.read_txn())
        assert all(row.id and row.status.kind == "done" for row in rows)

    def teardown(self) -> None:
        self.settled_maps_equal_the_rows()
        for address in list(self.rows):
            self.world.remove(address)
        self.settle()
        assert self.world.dump() == ""
        assert set(self.world.ops.summary().values()) == {0}


class FaultyFrontendsModel(FrontendsModel):
    faults = 0.1


class VeryFaultyFrontendsModel(FrontendsModel):
    faults = 0.5


@pytest.mark.parametrize("model", [FrontendsModel, FaultyFrontendsModel, VeryFaultyFrontendsModel])
def test_maps_follow_the_rows(model: Any) -> None:
    case = model.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
    case("runTest").runTest()

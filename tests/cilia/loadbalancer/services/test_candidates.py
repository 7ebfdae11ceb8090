# SPDX-License-Identifier: Apache-2.0
"""Candidates by port name: what is chosen is the same as from all backends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cilia.loadbalancer.services.candidates import Candidates
from cilia.loadbalancer.services.selection import in_order, matching
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.backends import Backend
from tables.sources import Source

NAME = ServiceName("test/echo")
names = st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True).map(tuple)


@given(st.lists(names, max_size=200), st.booleans(), st.sampled_from(["", "a", "b", "x"]))
def test_the_same_backends_match(ports: list[tuple[str, ...]], named: bool, port: str) -> None:
    rows = in_order(
        Backend(NAME, L3n4Addr.of("10.1.0.1", 1 + number, "TCP"), Source.K8S, port_names=of)
        for number, of in enumerate(ports)
        if of or not named
    )
    frontend = L3n4Addr.of("10.96.0.1", 80, "TCP")
    assert matching(frontend, port, Candidates(rows).of(port)) == matching(frontend, port, rows)

# SPDX-License-Identifier: Apache-2.0
"""Slices of a service: one is the rule, several add up in the order of their keys."""

from __future__ import annotations

import gc

from cilia.loadbalancer.services.known_slices import KnownSlices
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.backends import Backend, BackendState

ECHO, OTHER = ServiceName("test/echo"), ServiceName("test/other")
FIRST, SECOND, THIRD = (("EndpointSlice", "test", f"echo-{n}") for n in (1, 2, 3))


def backend(address: str, state: BackendState = BackendState.ACTIVE) -> Backend:
    return Backend(ECHO, L3n4Addr.parse(address), state=state)


A, B = backend("10.1.0.1:80/TCP"), backend("10.1.0.2:80/TCP")


def test_only_slice_of_a_service_is_its_backends() -> None:
    slices = KnownSlices()
    backends = (A, B)
    slices.put(FIRST, ECHO, backends)
    assert slices.backends_of(ECHO) is backends
    assert slices.backends_of(OTHER) == ()
    assert ECHO in slices and OTHER not in slices


def test_slice_that_is_put_again_replaces_its_backends() -> None:
    slices = KnownSlices()
    slices.put(FIRST, ECHO, (A, B))
    slices.put(FIRST, ECHO, (B,))
    assert slices.backends_of(ECHO) == (B,)
    assert list(slices.keys_of(ECHO)) == [FIRST]
    assert len(slices) == 1


def test_several_slices_add_up_in_the_order_of_their_keys() -> None:
    slices = KnownSlices()
    terminating = backend("10.1.0.1:80/TCP", BackendState.TERMINATING)
    slices.put(THIRD, ECHO, (terminating,))
    slices.put(FIRST, ECHO, (B,))
    slices.put(SECOND, ECHO, (A,))
    assert list(slices.keys_of(ECHO)) == [FIRST, SECOND, THIRD]
    assert slices.backends_of(ECHO) == (B, A)


def test_service_is_unknown_when_its_last_slice_was_dropped() -> None:
    slices = KnownSlices()
    for key in (FIRST, SECOND):
        slices.put(key, ECHO, (A,))
    assert slices.drop(FIRST) == ECHO
    assert list(slices.keys_of(ECHO)) == [SECOND]
    assert slices.services() == {ECHO}
    assert slices.drop(SECOND) == ECHO
    assert slices.drop(SECOND) is None
    assert ECHO not in slices and slices.services() == set()
    assert slices.keys() == set()


def test_slice_costs_the_collector_nothing_compiled_or_not() -> None:
    slices = KnownSlices()
    slices.put(FIRST, ECHO, (A,))
    known = slices.get(FIRST)
    assert known is not None
    assert not gc.is_tracked(known)

# SPDX-License-Identifier: Apache-2.0
"""Owners of wildcard entries: one is the rule, and the lowest of several decides."""

from __future__ import annotations

from reconcilers.loadbalancer.wildcard_owners import WildcardOwners
from tables.addressing import L3n4Addr

LOW, MIDDLE, HIGH = (L3n4Addr.parse(f"10.0.0.1:{port}/TCP") for port in (80, 443, 8080))


def test_lowest_owner_is_first_in_whatever_order_they_came() -> None:
    owners = WildcardOwners()
    for addr in (MIDDLE, HIGH, LOW):
        owners.add(b"k", addr)
    assert owners.first(b"k") == LOW
    assert len(owners) == 1


def test_entry_lasts_until_its_last_owner_goes() -> None:
    owners = WildcardOwners()
    for addr in (LOW, MIDDLE, MIDDLE):
        owners.add(b"k", addr)
    assert owners.remove(b"k", LOW)
    assert owners.first(b"k") == MIDDLE
    assert not owners.remove(b"k", MIDDLE)
    assert owners.keys() == []


def test_owner_that_is_added_twice_counts_once() -> None:
    owners = WildcardOwners()
    owners.add(b"k", LOW)
    owners.add(b"k", LOW)
    assert not owners.remove(b"k", LOW)

# SPDX-License-Identifier: Apache-2.0
"""What a row of `endpoints` says of its past."""

from __future__ import annotations

import msgspec
import pytest

from statedb.status import error, set_status
from tables.endpoints.endpoints import LOG_ENTRIES, Attachment, Endpoint, EndpointState, to_json


def endpoint(state: EndpointState = EndpointState.READY) -> Endpoint:
    return Endpoint(
        id=7,
        attachment=Attachment("cilia", "c", "eth0"),
        device="lxc7",
        node_mac=bytes(6),
        mac=bytes(6),
        created_at=1.0,
        state=state,
    )


def test_the_log_has_each_change_of_state_and_no_more_than_its_bound() -> None:
    ep = endpoint().moved(EndpointState.READY, 1.0)
    assert ep.moved(EndpointState.READY, 2.0, "unchanged") is ep
    for at in range(2, 100, 2):
        ep = ep.moved(EndpointState.REGENERATING, float(at), "its entry in the map is Pending")
        ep = ep.moved(EndpointState.READY, at + 1.0)
    assert len(ep.log) == LOG_ENTRIES
    assert to_json(ep)["Log"][-2:] == [
        {"At": 98.0, "State": "regenerating", "Message": "its entry in the map is Pending"},
        {"At": 99.0, "State": "ready", "Message": ""},
    ]


@pytest.mark.parametrize("state", EndpointState)
def test_each_state_has_a_health_and_an_error_is_a_failure(state: EndpointState) -> None:
    ep = endpoint(state)
    assert (ep.health == "OK") is (state is EndpointState.READY)
    failed = set_status(ep, error("no room"))
    assert failed.health == "Failure"


def test_the_owner_of_addresses_is_the_best_name_that_is_known() -> None:
    """One that was found in the kernel alone has neither a pod nor an attachment."""
    ep = msgspec.structs.replace(endpoint(), namespace="shop", pod="web")
    assert ep.owner == "shop/web"
    ep = msgspec.structs.replace(ep, pod="")
    assert ep.owner == "cilia/c/eth0"
    assert msgspec.structs.replace(ep, attachment=Attachment("", "", "")).owner == "lxc7"

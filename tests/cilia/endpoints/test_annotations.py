# SPDX-License-Identifier: Apache-2.0
"""What pods ask for by annotations."""

from __future__ import annotations

import pytest

from cilia.endpoints.annotations import (
    MAC_ADDRESS,
    InvalidAnnotation,
    mac_address,
    not_in_force,
)


@pytest.mark.parametrize("text", ["02:00:00:00:AB:01", "02-00-00-00-ab-01"])
def test_a_pod_may_name_the_address_of_its_device(text: str) -> None:
    assert mac_address({MAC_ADDRESS: text}) == bytes.fromhex("02000000ab01")


def test_a_pod_that_names_none_asks_for_none() -> None:
    assert mac_address({"cni.cilium.io/other": "x"}) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "02:00:00:00:00", "02:00:00:00:00:0", "02:00:00:00:00:01:02", "zz:00:00:00:00:01"),
        *("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "020000000001"),
    ],
)
def test_what_is_no_address_of_a_device_is_refused(text: str) -> None:
    with pytest.raises(InvalidAnnotation, match=MAC_ADDRESS):
        mac_address({MAC_ADDRESS: text})


def test_annotations_of_the_field_that_change_nothing_are_named() -> None:
    annotations = {
        "kubernetes.io/ingress-bandwidth": "1M",
        "ipam.cilium.io/ip-pool": "blue",
        "kubectl.kubernetes.io/restartedAt": "now",
        MAC_ADDRESS: "02:00:00:00:00:01",
    }
    assert not_in_force(annotations) == (
        "ipam.cilium.io/ip-pool",
        "kubernetes.io/ingress-bandwidth",
    )

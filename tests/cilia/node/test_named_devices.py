# SPDX-License-Identifier: Apache-2.0
"""A device that is named and serves nothing is told, by its name and with the reason."""

from __future__ import annotations

import pytest

from cilia.node.device_selection import DeviceFilter
from cilia.node.named_devices import missing
from tables.node.devices import Device

ETH0 = Device(1, "eth0", ("enp1s0",), selected=True)
ETH1 = Device(2, "eth1", not_selected_reason="device is down")
LO = Device(3, "lo", not_selected_reason="loopback")


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ([], []),
        (["eth0"], []),
        (["enp1s0"], []),
        (["eth+"], []),
        (["!lo"], []),
        (["nosuch0"], ["there is no device nosuch0"]),
        (["eth0", "nosuch+"], ["there is no device nosuch+"]),
        (["eth0", "eth1"], ["eth1: device is down"]),
        (["eth+", "!eth0"], ["eth1: device is down"]),
        (["eth0", "!eth0"], ["there is no device eth0"]),
    ],
)
def test_what_stands_for_no_serving_device_is_said(patterns: list[str], said: list[str]) -> None:
    assert list(missing([ETH0, ETH1, LO], DeviceFilter(tuple(patterns)))) == said

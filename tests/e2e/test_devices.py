# SPDX-License-Identifier: Apache-2.0
"""Devices that the options name, as `cilia status` tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cilia.linux.netns import NetNS
from tests.e2e.world import world
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


def test_a_named_device_that_is_missing_is_degraded_until_it_comes(tmp_path: Path) -> None:
    with world(tmp_path, "named") as w:

        def says(text: str) -> bool:
            (row,) = w.get("/status")["degraded"] or [{"message": "all is well"}]
            return text in row["message"]

        def at_devices() -> int:
            return sum(row["at"] == "device" for row in w.get("/status")["datapath"]["links"])

        w.start_agent("--devices=late0")
        w.eventually(w.ready)
        w.eventually(lambda: says("there is no device late0"))
        assert at_devices() == 0
        with NetNS.named(w.namespace) as netns:
            kernel = Kernel(netns)
            kernel.veth("late0", "other0")
            w.eventually(lambda: says("late0: device has no addresses"))
            kernel.ip("addr add 192.0.2.7/24 dev late0")
            w.eventually(lambda: w.get("/status")["healthy"] and at_devices() == 2)
            assert "to the cgroup, 2 to devices" in w.cilia("status").stdout
            kernel.ip("link del late0")
            w.eventually(lambda: says("there is no device late0") and at_devices() == 0)

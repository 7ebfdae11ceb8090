# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose devices went by themselves."""

from __future__ import annotations

import pytest

from cilia.endpoints import links
from cilia.endpoints.collector import Collector
from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from cilia.linux.sysctl import Sysctl
from statedb import DB
from tables.endpoints.endpoints import (
    Attachment,
    Endpoint,
    EndpointState,
    new_endpoints_table,
)
from tests.kernel import new_kernel

pytestmark = pytest.mark.root

MAC, NODE_MAC = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


def endpoint(number: int, device: str, index: int) -> Endpoint:
    return Endpoint(
        id=number,
        attachment=Attachment("cilia", f"c{number}", "eth0"),
        device=device,
        index=index,
        node_mac=NODE_MAC,
        mac=MAC,
        created_at=1.0,
        state=EndpointState.READY,
    )


async def test_an_endpoint_goes_when_its_device_is_missing_twice() -> None:
    db = DB("collector")
    table = new_endpoints_table(db)
    removed: list[str] = []

    async def remove(device: str) -> None:
        removed.append(device)

    with new_kernel() as kernel, Netlink(kernel.netns) as netlink, NetNS.new() as inside:
        sysctls = Sysctl(kernel.netns)
        names = [links.device_name(container, "eth0") for container in ("a", "b")]
        with db.write_txn(table) as wtxn:
            for number, name in enumerate(names, start=1):
                ifname = f"eth{number}"
                index = links.make_pair(netlink, sysctls, inside, name, ifname, MAC, NODE_MAC, 1500)
                table.insert(wtxn, endpoint(number, name, index))
        collector = Collector(db, table, netlink, remove)
        await collector.look()
        await collector.look()
        assert removed == []
        links.delete_pair(netlink, names[0])
        await collector.look()
        assert removed == []
        # One that came again under its name is another device.
        links.delete_pair(netlink, names[1])
        links.make_pair(netlink, sysctls, inside, names[1], "eth9", MAC, NODE_MAC, 1500)
        await collector.look()
        assert removed == [names[0]]

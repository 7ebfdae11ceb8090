# SPDX-License-Identifier: Apache-2.0
"""An ADD whose endpoint does not get into force: it says why, and leaves nothing."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from bpf.maps import endpoints as codec
from bpf.maps.fake import FakeMap
from cilia.endpoints import links
from cilia.endpoints import plugin as endpoints_plugin
from cilia.endpoints.chaining import Chaining
from cilia.endpoints.checking import EndpointCheck
from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.network_config import NetworkConfig
from cilia.endpoints.cni.requests import Command, Request
from cilia.endpoints.cni.turns import Turns
from cilia.endpoints.inputs import Inputs
from cilia.endpoints.plugin import EndpointPlugin
from cilia.endpoints.saved import SavedEndpoints
from cilia.endpoints.state_files import ENDPOINTS
from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from cilia.linux.sysctl import Sysctl
from reconcilers.endpoints.endpoints import EndpointOperations
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState
from tests.cilia.endpoints.stage import Stage
from tests.cilia.identity.ipcache.agent import Agent, new_map
from tests.kernel import Kernel, new_kernel

pytestmark = pytest.mark.root


class Node:
    """A plugin with a real kernel, and nobody who attaches programs."""

    def __init__(self, kernel: Kernel, netlink: Netlink, directory: Path) -> None:
        self.kernel, self.directory = kernel, directory
        self.agent = Agent(new_map())
        self.agent.inputs_are_read()
        self.stage = stage = Stage(self.agent)
        maps = [
            FakeMap(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES),
            FakeMap(codec.BY_ADDRESS, codec.ADDRESS_BYTES, codec.PLACE_BYTES),
        ]
        saved = SavedEndpoints(directory)
        saved.make_directory()
        self.plugin = EndpointPlugin(
            Inputs(
                self.agent.db,
                stage.pods,
                stage.namespaces,
                self.agent.nodes,
                self.agent.endpoints,
                stage.identity.identities,
            ),
            stage.registry,
            saved,
            netlink,
            Sysctl(kernel.netns),
            lambda: 1500,
            Turns(),
            EndpointCheck(netlink, EndpointOperations(*maps), self.agent.part.known),
            Chaining(netlink, None),
        )

    def left(self) -> dict[str, list[str]]:
        txn = self.agent.db.read_txn()
        allocations = self.stage.allocations.all(txn)
        return {
            "devices": [line for line in self.kernel.ip("-o link").splitlines() if "lxc" in line],
            "files": [path.name for path in (self.directory / ENDPOINTS).iterdir()],
            "endpoints": [str(ep.id) for ep in self.agent.endpoints.all(txn)],
            "addresses": [
                str(row.ip) for row in allocations if row.endpoint_id and not row.free_at
            ],
            "ipcache": [
                str(row.prefix)
                for row in self.agent.part.table.all(txn)
                if row.in_force.owner.startswith("endpoint")
            ],
        }


def request(netns: NetNS) -> Request:
    config = {"cniVersion": "1.0.0", "name": "cilia", "type": "cilia-cni"}
    return Request(
        command=Command.ADD,
        container_id="c1",
        ifname="eth0",
        netns=netns.path,
        netns_fd=netns.fd,
        args={"color": "red"},
        environment={},
        config=NetworkConfig.model_validate(config),
        raw_config=b"{}",
        prev_result=None,
    )


@pytest.mark.parametrize("cancelled", [False, True], ids=["in time", "by the server's limit"])
async def test_an_add_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    limit_s = 0.5
    monkeypatch.setattr(endpoints_plugin, "READY_WAIT_S", 60.0 if cancelled else limit_s)
    with new_kernel() as kernel, NetNS.new() as inside, Netlink(kernel.netns) as netlink:
        node = Node(kernel, netlink, tmp_path)
        seen: list[dict[str, list[str]]] = []
        async with anyio.create_task_group() as group:
            node.agent.ctx.start(group, node.agent.part.jobs)
            node.agent.ctx.start(group, node.stage.jobs)

            async def look() -> None:
                """What is there while the ADD waits."""
                while not node.left()["ipcache"]:
                    await anyio.sleep(0.005)
                seen.append(node.left())

            group.start_soon(look)
            started = time.monotonic()
            if cancelled:
                with anyio.move_on_after(limit_s) as scope:
                    await node.plugin.add(request(inside))
                assert scope.cancelled_caught
            else:
                with pytest.raises(
                    CNIError, match=r"not in force after .* look at `cilia status`"
                ) as error:
                    await node.plugin.add(request(inside))
                assert error.value.code == Code.TRY_AGAIN_LATER
            assert time.monotonic() - started >= limit_s
            with anyio.fail_after(5):
                while node.left()["ipcache"]:
                    await anyio.sleep(0.005)
            group.cancel_scope.cancel()
        (there,) = seen
        assert all(there.values()), "the ADD had made all of it"
        assert not any(node.left().values())
        assert "eth0" not in Kernel(inside).ip("-o link")


async def test_a_del_waits_for_the_endpoints_of_the_run_before(tmp_path: Path) -> None:
    """A row that came after its device was gone would stay, with addresses and file."""
    with new_kernel() as kernel, NetNS.new() as inside, Netlink(kernel.netns) as netlink:
        node = Node(kernel, netlink, tmp_path)
        table = node.agent.endpoints
        with node.agent.db.write_txn(table) as wtxn:
            restored = table.register_initializer(wtxn, "restore")
        ep = Endpoint(
            id=7,
            attachment=Attachment("cilia", "c1", "eth0"),
            device=links.device_name("c1", "eth0"),
            node_mac=links.new_mac(),
            mac=links.new_mac(),
            created_at=time.time(),
            state=EndpointState.RESTORING,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(node.plugin.delete, request(inside))
            await anyio.wait_all_tasks_blocked()
            with node.agent.db.write_txn(table) as wtxn:
                table.insert(wtxn, ep)
                restored(wtxn)
        assert node.left()["endpoints"] == []

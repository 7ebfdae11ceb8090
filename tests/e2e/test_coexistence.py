# SPDX-License-Identifier: Apache-2.0
"""`cilia status` names who else is on our hooks and serves our addresses; an agent lets them be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bpf.descriptors import open_directory
from bpf.link import AttachType, Link
from bpf.object import Object
from cilia.linux.netns import NetNS
from tests.bpf.sources import build
from tests.e2e.manifests import served
from tests.e2e.nodes import nft
from tests.e2e.world import POD_V4, World, world
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

OURS, NOT_OURS = "10.203.0.10", "10.203.0.99"
SOURCE = 'SEC("cgroup/connect4") int their_dial(struct bpf_sock_addr *ctx) { return 1; }'
KEY = "ipv4_addr . inet_proto . inet_service"


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "coexistence") as made:
        made.inside.serve(POD_V4[0], POD_V4[0], 8080)
        made.write("echo.yaml", served("echo", OURS, POD_V4[:1]))
        yield made


def others(w: World) -> dict[str, Any]:
    answer = json.loads(w.cilia("status", "-o", "json").stdout)
    found: dict[str, Any] = answer["others"]
    return found


def rules_of_kube_proxy(w: World) -> Kernel:
    """As its nftables mode writes them, for an address of ours and another."""
    node = Kernel(NetNS.named(w.namespace))
    nft(
        node,
        f"add table ip kube-proxy; add map ip kube-proxy service-ips {{ type {KEY} : verdict; }}; "
        "add element ip kube-proxy service-ips "
        f"{{ {OURS} . tcp . 80 : accept, {NOT_OURS} . tcp . 80 : accept }}",
    )
    return node


def test_others_are_named_and_left_alone(w: World) -> None:
    with ExitStack() as stack:
        node = rules_of_kube_proxy(w)
        stack.callback(node.netns.close)
        theirs = stack.enter_context(Object.open("theirs", build(SOURCE)))
        theirs.load()
        (program,) = theirs.programs()
        cgroup = stack.enter_context(open_directory(w.cgroup)).number
        link = stack.enter_context(Link.create(program, cgroup, AttachType.CGROUP_INET4_CONNECT))
        w.start_agent()
        w.eventually(w.ready)
        place = "table ip kube-proxy"
        rules = {
            "mode": "nftables",
            "place": place,
            "addresses": 2,
            "served": 1,
            "examples": [OURS],
        }
        number = program.info().id
        found = {"at": "cgroup", "hook": "cgroup inet4 connect", "id": number, "name": "their_dial"}
        assert others(w) == {"programs": [found], "kube_proxy": [rules], "error": ""}
        shown = w.cilia("status")
        assert shown.returncode == 0, "they are no fault"
        assert f"program their_dial, id {number}, at cgroup cgroup inet4 connect" in shown.stdout
        said = (
            f"kube-proxy's rules (nftables, {place}): 2 addresses, 1 of them served here ({OURS})"
        )
        assert said in shown.stdout

        w.kill_agent()
        w.start_agent()
        w.eventually(w.ready)
        assert others(w)["kube_proxy"] == [rules]
        nft(node, "delete table ip kube-proxy")
        link.detach()
    assert others(w) == {"programs": [], "kube_proxy": [], "error": ""}
    assert "Others:" not in w.cilia("status").stdout

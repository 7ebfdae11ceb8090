# SPDX-License-Identifier: Apache-2.0
"""Direct return by IP in IP with an agent on both nodes, each with its own node ports alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cilia.linux.cgroup import find_cgroup2
from tests.e2e.nodes import Connection, ask
from tests.e2e.passes import FAMILIES, KINDS, REMOTE, Asked, asked_world
from tests.e2e.world import PATIENCE, Inside, World
from tests.expected_failure import must_work

pytestmark = [pytest.mark.root, pytest.mark.timeout(90 * PATIENCE)]

OPTIONS = ("--bpf-lb-mode=dsr", "--bpf-lb-dsr-dispatch=ipip")


class Second(World):
    """The agent in the namespace of node2, on the manifests of the first."""

    def __init__(self, first: Asked, directory: Path, cgroup: Path, inside: Inside) -> None:
        super().__init__(directory, cgroup.name, cgroup, inside)
        self._netns = first.nodes.node[2].netns.path
        self.source = first.source

    def entering(self) -> list[str]:
        return ["nsenter", f"--net={self._netns}"]

    def command(self, *extra: str) -> list[str]:
        return [*super().command(), "--node-name=node2", "--devices=eth0", *extra]


def second(first: Asked, stack: ExitStack, directory: Path) -> Second:
    root = find_cgroup2()
    assert root is not None
    cgroup = root / f"cilia-test-second-{os.getpid()}"
    cgroup.mkdir()
    stack.callback(cgroup.rmdir)
    inside = Inside(str(first.nodes.node[2].netns.path), cgroup)
    stack.callback(inside.close)
    made = Second(first, directory, cgroup, inside)
    stack.callback(made.close)
    return made


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Both agents run, or have refused their options."""
    with ExitStack() as stack:
        made = stack.enter_context(asked_world(tmp_path_factory.mktemp("first"), "dsripip"))
        worlds = [made, second(made, stack, tmp_path_factory.mktemp("second"))]
        for each in worlds:
            each.start_agent(*OPTIONS)
        for each in worlds:
            each.eventually(lambda: each.ready() or refused(each), 30)  # noqa: B023
        if not refused(made):
            with must_work():
                address, port = REMOTE.frontend("LoadBalancer", 4)
                assert ask(made.nodes.client, address, port, KINDS["tcp"])[0] == "remote"
        yield made


def refused(w: World) -> bool:
    """The agent has ended with a sentence about the option."""
    ended = w.agents[-1].poll()
    return bool(ended) and "dsr-dispatch" in (w.directory / "agent.log").read_text()


@pytest.mark.parametrize("proto", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_node_port_with_a_remote_backend_is_served_or_the_option_is_refused(
    w: Asked, proto: str, family: int
) -> None:
    if not refused(w):
        address, port = REMOTE.frontend("NodePort", family)
        with Connection(w.nodes.client, address, port, KINDS[proto], timeout_s=1.0) as client:
            assert client.ask()[0] == "remote"

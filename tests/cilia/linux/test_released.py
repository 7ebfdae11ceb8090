# SPDX-License-Identifier: Apache-2.0
"""An error of the kernel edge, once it is dealt with, leaves nothing of its callers alive.

A frame that refers to an exception which came through it is a cycle. It would keep what its callers
had in hand, for example a snapshot of the tables, until the garbage collector comes by.
"""

from __future__ import annotations

import ast
import gc
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bpf.errors import BPFError
from bpf.maps.map import Map
from bpf.maps.types import MapType
from bpf.program import Program
from cilia.linux.errors import KernelError
from cilia.linux.netlink import Netlink
from cilia.linux.proxy_rules import kube_proxy_rules
from cilia.linux.requests import delete_link
from cilia.linux.sockdiag import SocketDiag
from tests.kernel import Kernel

ROOT = Path(__file__).parents[3]
PACKAGES = ("statedb", "reconcilers", "tables", "bpf", "cilia")


class Held:
    """What a caller has in hand."""


@contextmanager
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def releases(work: Callable[[], object]) -> bool:
    """True if a caller of `work`, which may fail, is gone when it has returned."""

    def caller() -> weakref.ref[Held]:
        held = Held()
        with suppress(KernelError, BPFError):
            work()
        return weakref.ref(held)

    with uncollected():
        return caller()() is None


@pytest.mark.root
def test_what_netlink_refuses_is_released(kernel: Kernel) -> None:
    with Netlink(kernel.netns) as netlink:
        assert releases(lambda: netlink.link("missing"))
        assert releases(lambda: netlink.filters(4711, 0))
        assert releases(lambda: netlink.request(delete_link(4711)))
        assert releases(lambda: netlink.routes(table=4711))
        assert kernel.netns.run(lambda: releases(lambda: kube_proxy_rules(netlink)))


@pytest.mark.root
def test_what_sock_diag_refuses_is_released(kernel: Kernel) -> None:
    with SocketDiag(kernel.netns) as diag:
        assert releases(lambda: list(diag.sockets(socket.AF_INET, 99)))


@pytest.mark.root
def test_what_the_kernel_refuses_of_maps_and_programs_is_released() -> None:
    with Map.create(MapType.ARRAY, "test", 4, 8, 2) as array:
        assert releases(lambda: array.delete(bytes(4)))
        assert releases(lambda: array.update(bytes(4), bytes(8), flags=1))
        assert releases(lambda: array.update_batch([b"\xff" * 4], [bytes(8)]))
    assert releases(lambda: Program.by_id(1 << 31))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_raises_what_it_has_a_name_for(package: str) -> None:
    """Unless it forgets the name in a `finally`, as `raise_if` does."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in _named_raises(ast.parse(path.read_text()))
    ]
    assert found == []


def _named_raises(tree: ast.AST) -> Iterator[int]:
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = list(ast.walk(function))
        # Python itself forgets the name of a handler.
        forgotten = {node.name for node in nodes if isinstance(node, ast.ExceptHandler)}
        forgotten |= {
            target.id
            for node in nodes
            if isinstance(node, ast.Try)
            for last in node.finalbody
            if isinstance(last, ast.Delete)
            for target in last.targets
            if isinstance(target, ast.Name)
        }
        for node in nodes:
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
                name = node.exc.id
                if name[0].islower() and name not in forgotten:
                    yield node.lineno

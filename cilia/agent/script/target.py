# SPDX-License-Identifier: Apache-2.0
"""What the agent's script commands act on: an agent and its maps, seen from another thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from bpf.maps.lb import LBMaps
from bpf.maps.redirect_skips import SkipMaps
from cilia.agent.wiring import Agent

__all__ = ["Flags", "ScriptTarget", "Target"]

Flags = dict[str, Any]
T = TypeVar("T")


class Target(Protocol):
    """An agent at work, or one under test."""

    @property
    def agent(self) -> Agent: ...

    @property
    def world(self) -> LBMaps:
        """The maps without the faults that tests put before them."""
        ...

    @property
    def skip(self) -> SkipMaps | None:
        """The maps that spare pods their redirection, likewise."""
        ...

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread of the agent's event loop."""
        ...


class ScriptTarget(Target, Protocol):
    """One whose maps and objects are nobody's."""

    def snapshot_maps(self) -> None: ...
    def restore_maps(self, *, any_protocol: bool) -> None: ...
    def merge_node_labels(self, labels: Mapping[str, str]) -> None:
        """Add labels to the node's object."""
        ...

    def set_node(self, *, labels: Mapping[str, str] | None = None, ip: str | None = None) -> None:
        """Say of the node, through its object, what is not None."""
        ...

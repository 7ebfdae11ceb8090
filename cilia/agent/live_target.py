# SPDX-License-Identifier: Apache-2.0
"""Script commands on the tables and maps of an agent at work.

The same commands as in scripts, without those that would write behind the back of their owners
(`db/insert`, `db/delete`, `--delete`, `k8s/*`, map restore).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import anyio.from_thread

from bpf.maps.lb import LBMaps
from bpf.maps.redirect_skips import SkipMaps
from cilia.agent.script.lb import lb_commands
from cilia.agent.script.observe import observe_commands
from cilia.agent.script.redirects import redirect_commands
from cilia.agent.wiring import Agent
from cilia.script.commands import CommandLike
from cilia.script.documents import DOCUMENT_COMMANDS
from cilia.script.sessions import Sessions
from statedb.shown.commands import db_commands

__all__ = ["LiveTarget", "new_sessions"]

T = TypeVar("T")


class LiveTarget:
    """See `cilia.agent.script.target.Target`; commands run in anyio's worker threads."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.world: LBMaps = agent.datapath.edge.maps
        self.skip: SkipMaps | None = agent.datapath.edge.skip

    def call(self, function: Callable[[], T]) -> T:
        return anyio.from_thread.run_sync(function)


def commands(target: LiveTarget) -> Iterable[CommandLike]:
    tables = db_commands(target.agent.ctx.db, read_only=True)
    return (
        *DOCUMENT_COMMANDS,
        *tables,
        *observe_commands(target),
        *lb_commands(target),
        *redirect_commands(target),
    )


def new_sessions(agent: Agent) -> Sessions:
    """Return the sessions of a live shell on an agent."""
    target = LiveTarget(agent)
    return Sessions(lambda: commands(target))

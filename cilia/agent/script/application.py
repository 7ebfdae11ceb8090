# SPDX-License-Identifier: Apache-2.0
"""The agent under golden scripts: the same wiring with a tracker for an API server and fake maps.

The objects and the maps stand for the outside world and survive `hive/recreate`; everything else is
built anew. As root the scripts also run on real, unpinned maps (`--lb-test-real-maps`). Options
that begin with `lb-test` exist here only.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import anyio.abc
import click
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import Field

from bpf.maps import lb
from bpf.maps.fake import FaultyMap
from bpf.maps.lb import LBMaps
from bpf.maps.raw import RawMap
from bpf.maps.redirect_skips import SkipMaps
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.script.k8s import k8s_commands
from cilia.agent.script.kvstore import kvstore_commands
from cilia.agent.script.lb import lb_commands, lb_test_commands
from cilia.agent.script.observe import observe_commands
from cilia.agent.script.redirects import redirect_commands, redirect_test_commands
from cilia.agent.wiring import Agent, build
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.tracker import Tracker
from cilia.program.options import options_of, validated
from cilia.program.values import Duration
from cilia.script.commands import CommandLike
from cilia.script.documents import DOCUMENT_COMMANDS
from cilia.script.runner import Suite
from statedb.shown.commands import db_commands

T = TypeVar("T")

__all__ = ["SUITE", "ScriptApplication"]

RETRY = "10ms"


def _health_address() -> str:
    """An address of loopback for each process: scripts ask for fixed ports, and run at once."""
    pid = os.getpid()
    return f"127.{1 + (pid >> 16) % 250}.{(pid >> 8) & 255}.{1 + (pid & 255) % 254}"


HEALTH_ADDRESS = _health_address()


class ScriptConfig(AgentConfig):
    """The agent's options with what scripts expect, and the faults that only they may ask for."""

    node_name: str = "testnode"
    lb_retry_backoff_min: Duration = RETRY
    lb_retry_backoff_max: Duration = RETRY
    bpf_lb_maglev_table_size: int = 1021
    enable_local_redirect_policy: bool = True
    # Off unless asked for, and then with all that belongs to it.
    enable_health_check_nodeport: bool = False
    enable_health_check_loadbalancer_ip: bool = True
    # Older scripts ask for what is always on.
    enable_experimental_lb: Annotated[bool, Field(description="Has no effect.")] = True
    # No other cluster is followed yet: scripts that name theirs run, and nothing comes of it.
    cluster_id: Annotated[int, Field(ge=0, le=511, description="Has no effect yet.")] = 0
    cluster_name: Annotated[str, Field(description="Has no effect yet.")] = "default"
    clustermesh_service_v2: Annotated[bool, Field(description="Has no effect yet.")] = False
    test_peering_ips: Annotated[str, Field(description="Has no effect yet.")] = ""
    lb_test_fault_probability: Annotated[
        float, Field(ge=0, le=1, description="Share of map operations that fail.")
    ] = 0.0
    lb_test_real_maps: Annotated[bool, Field(description="Use kernel maps; needs root.")] = False


def parse(flags: Sequence[str]) -> ScriptConfig:
    """The options from a script's first line; later flags win.

    Raises:
        click.UsageError: an unknown option or a wrong value.
    """

    @click.command()
    @options_of(ScriptConfig)
    def command(**given: Any) -> None:
        raise NotImplementedError("parsed, never called")

    words = [_OLDER_NAMES.get(name, name) + sign + value for name, sign, value in _split(flags)]
    return validated(ScriptConfig, command.make_context("script", words).params)


# Options as scripts of earlier versions call them.
_OLDER_NAMES = {"--node-port-algorithm": "--bpf-lb-algorithm"}


def _split(flags: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    return (flag.partition("=") for flag in flags)


class ScriptApplication:
    """One agent in a thread of its own; see `cilia.script.application.Application`."""

    def __init__(self, flags: Sequence[str]) -> None:
        self._flags = list(flags)
        self.tracker = Tracker()
        # Goes with the application: a script keeps nothing for a later one.
        self._state_dir = Path(tempfile.mkdtemp(prefix="cilia-script-"))
        weakref.finalize(self, shutil.rmtree, self._state_dir, ignore_errors=True)
        self._kvstore: dict[str, str] = {}
        config = parse(flags)
        self._world = (
            LBMaps.create(config.bpf_lb_map_max)
            if config.lb_test_real_maps
            else LBMaps.fake(config.bpf_lb_map_max)
        )
        self.skip = SkipMaps.create() if config.lb_test_real_maps else SkipMaps.fake()
        self._node_labels: dict[str, str] = {}
        self._node_ip = ""
        self._snapshot: list[list[tuple[bytes, bytes]]] = []
        self._running = ExitStack()
        self._portal: BlockingPortal | None = None
        self._build(config)

    def _build(self, config: ScriptConfig) -> None:
        if config.state_dir is None:
            config = config.model_copy(update={"state_dir": self._state_dir})
        rng = random.Random(f"{config.lb_test_fault_probability}")
        probability = config.lb_test_fault_probability

        def faulty(raw: RawMap) -> RawMap:
            return FaultyMap(raw, probability, rng)

        datapath = MemoryDatapath(self._world.wrap(faulty), self.skip.wrap(faulty))
        self.agent: Agent = build(
            new_context(config, self.tracker),
            config,
            datapath,
            source="tracker",
            health_check_address=HEALTH_ADDRESS,
        )

    def start(self, limit_s: float) -> None:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            run, _ = portal.start_task(self._run)
            stack.callback(_cancelled, run, limit_s)
            self._portal = portal
            self._running = stack.pop_all()

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with anyio.create_task_group() as group:
            self.agent.ctx.start(group, self.agent.jobs)
            task_status.started()

    def stop(self, limit_s: float) -> None:
        self._portal = None
        self._running.close()

    def recreate(self, flags: Sequence[str]) -> None:
        self._build(parse([*self._flags, *flags]))

    def describe(self) -> str:
        jobs = "".join(f"  {name}\n" for name in sorted(self.agent.jobs))
        tables = "".join(f"  {table.name}\n" for table in self.agent.ctx.db.tables())
        return f"Jobs:\n{jobs}Tables:\n{tables}"

    def commands(self) -> Iterable[CommandLike]:
        return (
            *DOCUMENT_COMMANDS,
            *db_commands(self.agent.ctx.db),
            *k8s_commands(self.tracker),
            *observe_commands(self),
            *lb_commands(self),
            *lb_test_commands(self),
            *redirect_commands(self),
            *redirect_test_commands(self),
            *kvstore_commands(self._kvstore),
        )

    # -- what the load-balancer commands need --

    @property
    def world(self) -> LBMaps:
        """The maps without the faults."""
        return self._world

    def call(self, function: Callable[[], T]) -> T:
        """Run a function where the agent runs: in its thread, or here while it is stopped."""
        return function() if self._portal is None else self._portal.call(function)

    def snapshot_maps(self) -> None:
        self._snapshot = [list(raw.items()) for raw in self._world.all()]

    def restore_maps(self, *, any_protocol: bool) -> None:
        """Write the snapshot back over what is there."""
        for raw, entries in zip(self._world.all(), self._snapshot, strict=True):
            for key, value in entries:
                if any_protocol:
                    key, value = lb.with_any_protocol(raw.name, key, value)
                raw.update(key, value)

    def merge_node_labels(self, labels: Mapping[str, str]) -> None:
        self.set_node(labels={**self._node_labels, **labels})

    def set_node(self, *, labels: Mapping[str, str] | None = None, ip: str | None = None) -> None:
        """The node's object is one of the tracker's, like all others."""
        if labels is not None:
            self._node_labels = dict(labels)
        if ip is not None:
            self._node_ip = ip
        addresses = [{"type": "InternalIP", "address": self._node_ip}] if self._node_ip else []
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.agent.config.node_name, "labels": self._node_labels},
            "status": {"addresses": addresses},
        }
        self.tracker.add(json.dumps(node).encode())


def _cancelled(run: Future[Any], limit_s: float) -> None:
    run.cancel()


def _variants() -> dict[str, tuple[str, ...]]:
    """Each script on fake maps, on failing ones, and as root on the kernel's."""
    variants: dict[str, tuple[str, ...]] = {
        "fake": (),
        "faults": ("--lb-test-fault-probability=0.1",),
    }
    if os.geteuid() == 0:
        variants["kernel"] = ("--lb-test-real-maps=true",)
    return variants


SUITE = Suite(
    ScriptApplication,
    environment={"HEALTHADDR": HEALTH_ADDRESS},
    retry_interval_s=0.02,
    variants=_variants(),
)

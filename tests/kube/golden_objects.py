# SPDX-License-Identifier: Apache-2.0
"""Golden scripts on a real API server: the same objects give the same tables, step by step.

    python -m tests.kube.golden_objects [SCRIPT...]

What a script does to the API server that it has in memory is done to three agents at once:

    written    objects as the script wrote them, as manifests
    stored     objects as the API server has them, as manifests
    read       the API server, listed and watched over its real source

After each step `read` has the tables of `stored`. Where those of `written` differ, the API server
changed the objects (an allocated port, a default), which is shown. What it refuses is shown with
its reason, and no agent gets it. When most objects are there, two more agents start on them, one of
each source, so that lists are compared too. Ends with 1 where tables differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from bpf.maps.lb import LBMaps
from bpf.maps.redirect_skips import SkipMaps
from cilia.agent.config import AgentConfig
from cilia.agent.script.application import parse as parse_flags
from cilia.agent.wiring import Agent
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.objects import ObjectKey
from cilia.k8s.tracker import NotFound, Tracker, TrackerError
from cilia.k8s.watch import Delete, Source, Upsert

from .agents import api_source, rows, running_agent
from .apiserver import ApiServer
from .golden_cluster import Cluster, changes, key_of, prepare, settings
from .golden_steps import Form, Put, Remove, Replace, Step, flags_of, recorded, scripts

TABLES: Final = ("services", "frontends", "backends", "localredirectpolicies")
# Tables that do not change for so long are at rest; they must be equal in that time.
REST_S: Final = 0.06
EQUAL_S: Final = 10.0
# An object that its resource's selector leaves out never comes.
ARRIVAL_S: Final = 0.5

Tables = dict[str, list[dict[str, str]]]
_numbers = itertools.count(2)


class Outcome(msgspec.Struct):
    """What was found of one script."""

    name: str
    steps: int = 0
    refused: list[str] = msgspec.field(default_factory=list)
    made_anew: list[str] = msgspec.field(default_factory=list)
    # What the API server changed, where tables show it.
    changed: list[str] = msgspec.field(default_factory=list)
    different: list[str] = msgspec.field(default_factory=list)
    most: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.different:
            return "DIFFERENT"
        return "same, as changed by the API server" if self.changed else "same"


def tables_of(agent: Agent) -> Tables:
    return fitted({table: rows(agent, table) for table in TABLES})


def fitted(tables: Tables) -> Tables:
    """Without what is in force, where a map is full: who fits depends on who comes first."""
    if "is full" not in str(tables):
        return tables
    plain = [{**row, "Status": "", "Error": ""} for row in tables["frontends"]]
    return {**tables, "frontends": plain}


def sizes(tables: Tables) -> dict[str, int]:
    """Without the API server's own Service, which no script has."""
    return {
        name: sum("default/kubernetes" not in str(row.values()) for row in table)
        for name, table in tables.items()
    }


class Arrivals:
    """Which versions of objects a source has told."""

    def __init__(self) -> None:
        self.versions: dict[ObjectKey, str] = {}
        self.moved = asyncio.Event()

    async def follow(self, source: Source, kinds: list[Any]) -> None:
        async for events in source.watch(*kinds):
            for event in events:
                if isinstance(event, Upsert):
                    self.versions[event.obj.key] = event.obj.metadata.resource_version
                elif isinstance(event, Delete):
                    self.versions.pop(event.key, None)
            self.moved.set()

    async def of(self, key: ObjectKey, version: str | None) -> None:
        """Returns when the object has come, or will not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ARRIVAL_S):
                while self.versions.get(key) != version:
                    self.moved.clear()
                    await self.moved.wait()


def agent_of(config: AgentConfig, source: Source, run: Any = None) -> Any:
    datapath = MemoryDatapath(LBMaps.fake(config.bpf_lb_map_max), SkipMaps.fake())
    address = f"127.77.0.{next(_numbers) % 250 + 2}"
    return running_agent(config, source, run, datapath=datapath, health_check_address=address)


class Replay:
    """The three agents under one script's steps."""

    def __init__(self, cluster: Cluster, outcome: Outcome, config: AgentConfig) -> None:
        self.cluster, self.outcome, self.config = cluster, outcome, config
        self.written, self.stored, self.arrivals = Tracker(), Tracker(), Arrivals()
        self.agents: list[Agent] = []
        # How `written` differs from `stored` so far.
        self.known: list[str] = []
        for form in cluster.own():
            for tracker in (self.written, self.stored):
                tracker.add(json.dumps(form).encode())

    @contextlib.asynccontextmanager
    async def running(self, on_api: AgentConfig) -> AsyncIterator[None]:
        source = api_source(on_api)
        async with (
            agent_of(self.config, self.written) as written,
            agent_of(self.config, self.stored) as stored,
            agent_of(on_api, source, source.run) as read,
        ):
            self.agents = [written, stored, read]
            kinds = [watch.resource.kind for watch in source.watches.values()]
            following = asyncio.create_task(self.arrivals.follow(source, kinds))
            try:
                yield
            finally:
                following.cancel()

    async def take(self, step: Step) -> None:
        match step:
            case Put():
                await self._put(step.form)
            case Remove():
                await self._remove(key_of(step.form), step.form)
            case Replace():
                await self._replace(step)
        await self._compare(step)

    async def _put(self, form: Form) -> None:
        anew = sum(self.cluster.made_anew.values())
        stored = await asyncio.to_thread(self.cluster.put, form)
        if stored is None:
            return
        if sum(self.cluster.made_anew.values()) > anew:
            self._forget(form)
        self._offer(self.written.add, form)
        self._offer(self.stored.add, stored)
        await self.arrivals.of(key_of(form), stored["metadata"]["resourceVersion"])

    def _offer(self, take: Callable[[bytes], None], form: Form) -> None:
        """An object that we refuse is refused whoever brings it."""
        with contextlib.suppress(TrackerError):
            take(json.dumps(form).encode())

    async def _remove(self, key: ObjectKey, form: Form) -> None:
        await asyncio.to_thread(self.cluster.remove, key)
        self._forget(form)
        await self.arrivals.of(key, None)

    def _forget(self, form: Form) -> None:
        for tracker in (self.written, self.stored):
            with contextlib.suppress(NotFound):
                tracker.delete(json.dumps(form).encode())

    async def _replace(self, step: Replace) -> None:
        """A list that says something else; at the API server, changes."""
        for key, form in self.cluster.unwanted(step):
            await self._remove(key, form)
        for form in step.forms:
            await self._put(form)

    async def _compare(self, step: Step) -> None:
        written, stored, read = await self._equal()
        most = self.outcome.most, sizes(read)
        self.outcome.most = max(most, key=lambda counts: sum(counts.values()))
        if stored != read:
            self.outcome.different += differences(_shown(step), stored, read)
        known, self.known = self.known, differences("", written, stored)
        there = self.cluster.stored.get(key_of(step.form)) if isinstance(step, Put) else None
        if isinstance(step, Put) and there is not None and set(self.known) - set(known):
            told = [f"{_shown(step)}: {text}" for text in changes(step.form, there)]
            self.outcome.changed += [text for text in told if text not in self.outcome.changed]

    async def _equal(self) -> list[Tables]:
        """The tables at rest; unequal ones after a while."""
        until = time.monotonic() + EQUAL_S
        while True:
            before = [tables_of(agent) for agent in self.agents]
            await asyncio.sleep(REST_S)
            now = [tables_of(agent) for agent in self.agents]
            if (before == now and now[1] == now[2]) or time.monotonic() > until:
                return now


def _shown(step: Step) -> str:
    if isinstance(step, Replace):
        return f"list of {step.resource}"
    kind, namespace, name = key_of(step.form)
    verb = "" if isinstance(step, Put) else "deletion of "
    return f"{verb}{kind} {namespace}/{name}"


def differences(when: str, stored: Tables, read: Tables) -> list[str]:
    found = [
        f"{when}: {table}: only from {origin}: {row}"
        for table in TABLES
        for origin, some, others in (
            ("manifests", stored[table], read[table]),
            ("the API server", read[table], stored[table]),
        )
        for row in some
        if row not in others
    ]
    return found if found or stored == read else [f"{when}: another order of rows"]


async def started_on(cluster: Cluster, config: AgentConfig, on_api: AgentConfig) -> list[str]:
    """Two agents that begin with what is there, and how their tables differ."""
    tracker = Tracker()
    for form in (*cluster.own(), *(cluster.stored[key] for key in sorted(cluster.stored))):
        with contextlib.suppress(TrackerError):
            tracker.add(json.dumps(form).encode())
    source = api_source(on_api)
    async with agent_of(config, tracker) as stored, agent_of(on_api, source, source.run) as read:
        until = time.monotonic() + EQUAL_S
        while tables_of(stored) != tables_of(read) and time.monotonic() < until:
            await asyncio.sleep(REST_S)
        return differences("at the start", tables_of(stored), tables_of(read))


async def replayed(server: ApiServer, path: Path, steps: list[Step]) -> Outcome:
    config = parse_flags(flags_of(path))
    on_api = config.model_copy(update={"k8s_kubeconfig_path": server.kubeconfig})
    outcome = Outcome(f"{path.parent.name}/{path.stem}", len(steps))
    cluster = Cluster(server)
    fullest, most = 0, 0
    try:
        replay = Replay(cluster, outcome, config)
        async with replay.running(on_api):
            for i, step in enumerate(steps):
                await replay.take(step)
                if len(cluster.stored) >= most:
                    fullest, most = i + 1, len(cluster.stored)
        await asyncio.to_thread(cluster.clear)
        for step in steps[:fullest]:
            await asyncio.to_thread(cluster.take, step)
        outcome.different += await started_on(cluster, config, on_api)
    finally:
        cluster.clear()
    outcome.refused = list(cluster.refused)
    outcome.made_anew = list(cluster.made_anew)
    return outcome


def compare(server: ApiServer, path: Path) -> Outcome:
    """All of one script."""
    return asyncio.run(replayed(server, path, list(recorded(path))))


def show(outcome: Outcome) -> None:
    counts = ", ".join(f"{n} {table}" for table, n in outcome.most.items() if n)
    print(f"{outcome.name}: {outcome.verdict}: {outcome.steps} steps, {counts or 'no rows'}")
    for title in ("refused", "made_anew", "changed", "different"):
        for text in getattr(outcome, title):
            print(f"  {title.replace('_', ' ')}: {text}")
    sys.stdout.flush()


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    wanted = set(sys.argv[1:])
    outcomes = []
    with (
        tempfile.TemporaryDirectory() as directory,
        ApiServer(Path(directory), settings()) as server,
    ):
        prepare(server)
        for path in scripts():
            if not wanted or path.stem in wanted:
                outcomes.append(compare(server, path))
                show(outcomes[-1])
    verdicts = [outcome.verdict for outcome in outcomes]
    print(
        f"{len(outcomes)} scripts, {sum(o.steps for o in outcomes)} steps:"
        f" {sum(v != 'DIFFERENT' for v in verdicts)} the same"
        f" ({sum('changed' in v for v in verdicts)} with what the API server changed),"
        f" {verdicts.count('DIFFERENT')} different;"
        f" {sum(len(o.refused) for o in outcomes)} objects refused"
    )
    sys.exit(1 if "DIFFERENT" in verdicts else 0)


if __name__ == "__main__":
    main()

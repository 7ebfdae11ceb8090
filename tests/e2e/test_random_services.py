# SPDX-License-Identifier: Apache-2.0
"""Random Services, step by step: tables, maps and real connections agree with a naive model."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bpf.errors import BPFError
from bpf.maps.lb import LBMaps
from cilia.script.runner import run_file
from statedb.web.remote import RemoteDB
from tests.e2e.random_services import (
    ADDRESS,
    HERE,
    PORTS,
    TARGET_PORT,
    Chosen,
    Endpoint,
    Service,
    Slice,
    Step,
    address_text,
    golden_script,
    random_step,
    served,
    shrink,
)
from tests.e2e.world import POD_V4, POD_V6, World, world
from tests.patience import PATIENCE
from tests.reconcilers.loadbalancer.lb_view import seen, seen_details
from tests.test_scripts import suite_of

STEPS = 120
#: For a step to be in force, and for all replays of a failure.
STEP_S, SHRINK_S = 3.0, 20.0
#: Connections to each frontend in each state.
ASKED = 3

Served = dict[str, Chosen]
NOT_YET: Served = {"not yet": Chosen(frozenset())}


class Driver:
    """Does the steps in a world, and looks what came of it."""

    def __init__(self, w: World) -> None:
        self.w = w
        self._db = RemoteDB(str(w.state_dir / "cilia.sock"))

    def do(self, step: Step) -> None:
        text = step.manifest()
        if text is None:
            (self.w.manifests / step.file).unlink(missing_ok=True)
        else:
            self.w.write(step.file, text)

    def wrong(self, steps: Sequence[Step]) -> str:
        """What is not as the model says; nothing if all is, within `STEP_S`."""
        wanted = served(steps)
        plain = {address: Chosen(chosen.backends) for address, chosen in wanted.items()}
        try:
            self.w.eventually(
                lambda: self._in_maps() == wanted and self._in_table() == plain, STEP_S
            )
        except AssertionError:
            return f"table {self._in_table()}, maps {self._in_maps()}, model {wanted}"
        return self._asked_wrongly(wanted)

    def fails(self, steps: Sequence[Step]) -> bool:
        """Whether the last state of steps is wrong, on an empty cluster; and empties it again."""
        for step in steps:
            self.do(step)
        wrong = self.wrong(steps)
        for step in steps:
            self.do(Step(step.file, None))
        self.w.eventually(lambda: self._in_table() == {}, STEP_S)
        return bool(wrong)

    def _in_table(self) -> Served:
        """Of rows that are in force: of the backends, the best that there are; not who stays."""
        found = {}
        for row in self._db.table("frontends").all(self._db.read_txn()):
            if row["Status"]["kind"].lower() != "done":
                return NOT_YET
            states: dict[int, set[str]] = {}
            for backend in row["Backends"]:
                states.setdefault(backend["State"], set()).add(_host(backend["Address"]))
            best = states.get(0) or states.get(1) or set()
            found[row["Address"]] = Chosen(frozenset(best))
        return found

    def _in_maps(self) -> Served:
        try:
            maps = LBMaps.open_pinned(self.w.bpf_root / self.w.namespace / "maps")
        except BPFError:
            return {}
        try:
            frontends, details = seen(maps)[0], seen_details(maps)
        except (AssertionError, KeyError):  # read in the middle of a change
            return NOT_YET
        finally:
            maps.close()
        return {
            address: Chosen(
                frozenset(_host(backend) for backend in slots.backends[: slots.used]),
                address in details and bool(details[address].affinity),
            )
            for address, slots in frontends.items()
        }

    def _asked_wrongly(self, wanted: Served) -> str:
        """By TCP and UDP, also where no Service is."""
        asked = {"TCP": self.w.inside.tcp, "UDP": self.w.inside.udp_connected}
        for name, port, protocol in itertools.product(ADDRESS, PORTS, asked):
            chosen = wanted.get(address_text(name, port, protocol))
            times = ASKED if chosen and chosen.backends else 1
            results = [asked[protocol](ADDRESS[name], port) for _ in range(times)]
            if not _is_right(results, chosen):
                return f"{name}:{port}/{protocol}: {results}, not as {chosen}"
        return ""


def _host(address: str) -> str:
    """Of ``1.2.3.4:80/TCP`` and ``[::1]:80/TCP``."""
    return address.rpartition(":")[0].strip("[]")


def _is_right(results: Sequence[dict[str, object]], chosen: Chosen | None) -> bool:
    """Refused without backends; nothing leads to what is no frontend."""
    if chosen is None:
        return "errno" in results[0]
    if not chosen.backends:
        return results[0].get("errno") == errno.ECONNREFUSED
    answers = {result.get("answer") for result in results}
    return answers <= chosen.backends and (len(answers) == 1 or not chosen.sticky)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    with world(tmp_path, "random") as w:
        for address in (*POD_V4, *POD_V6):
            w.inside.serve(address, address, TARGET_PORT)
        w.start_agent(f"--node-name={HERE}", "--bpf-lb-enable-wildcard-entries=false")
        w.eventually(w.ready)
        yield Driver(w)


@pytest.mark.root
@pytest.mark.timeout(60)
def test_random_services_are_served_as_the_model_says(driver: Driver) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    steps: list[Step] = []
    for _ in range(STEPS):
        steps.append(random_step(rng))
        driver.do(steps[-1])
        wrong = driver.wrong(steps)
        if wrong:
            for file in {step.file for step in steps}:
                driver.do(Step(file, None))
            again = driver.fails(steps)
            least = shrink(steps, driver.fails, SHRINK_S * PATIENCE) if again else steps
            pytest.fail(f"seed {seed}: {wrong}\nagain: {again}\n{golden_script(least)}")


def test_shrinking_leaves_the_steps_that_matter() -> None:
    rng = random.Random(1)
    steps = [random_step(rng) for _ in range(50)]
    needed = [
        Step("ant.yaml", Service("ant", 80)),
        Step("ant-1.yaml", Slice("ant", 1, (Endpoint(POD_V4[0], HERE, "ready"),))),
    ]
    steps[10:10], steps[40:40] = needed[:1], needed[1:]
    assert shrink(steps, lambda some: all(step in some for step in needed), 10) == needed
    assert shrink(steps, lambda some: len(some) > 30, 0) == steps
    script = golden_script(needed)
    assert f"served by {POD_V4[0]}" in script


def test_script_of_a_failure_runs_on_its_own(tmp_path: Path) -> None:
    rng = random.Random(2)
    file = tmp_path / "failure.txtar"
    file.write_text(golden_script([random_step(rng) for _ in range(30)]))
    told: list[str] = []
    (tmp_path / "work").mkdir()
    suite = suite_of("loadbalancer")
    variant = next(iter(suite.variants))
    run_file(file, suite, variant=variant, workdir=tmp_path / "work", sink=told.append)
    assert "10.203.0.1" in "".join(told)


def test_model_prefers_ready_backends_and_minds_the_policy() -> None:
    def chosen(*endpoints: tuple[str, str], local: bool = False) -> set[str]:
        pods = tuple(Endpoint(POD_V4[i], node, c) for i, (node, c) in enumerate(endpoints))
        steps = [
            Step("ant.yaml", Service("ant", 80, local)),
            Step("ant-1.yaml", Slice("ant", 1, pods)),
        ]
        return {
            str(POD_V4.index(address)) for address in served(steps)["10.203.0.10:80/TCP"].backends
        }

    assert chosen(("here", "ready"), ("there", "ready")) == {"0", "1"}
    assert chosen(("here", "ready"), ("there", "ready"), local=True) == {"0"}
    assert chosen(("here", "draining"), ("there", "ready")) == {"1"}
    assert chosen(("here", "draining"), ("there", "ready"), local=True) == {"0"}
    assert chosen(("here", "dying"), ("here", "unready")) == set()

# SPDX-License-Identifier: Apache-2.0
"""Random Services of every kind, asked for from everywhere: packets from outside and of pods, and
sockets, agree with what a naive model says of policies and states.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from errno import errorcode
from typing import NamedTuple

import pytest

from tests.e2e.nodes import pod_address
from tests.e2e.passes import FAMILIES, KINDS, Asked, Service, asked_world

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

STATES = 25
TRIES = 2
SERVICES = (Service("ant", 5), Service("bee", 6))
FRONTENDS = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalIP")
CONDITIONS = {
    "ready": "{ready: true, serving: true, terminating: false}",
    "draining": "{ready: false, serving: true, terminating: true}",
    "dying": "{ready: false, serving: false, terminating: true}",
}
SERVERS = {1: "local", 2: "remote"}


class State(NamedTuple):
    """Of one Service: its policies, and the condition of its endpoint on each node."""

    external_local: bool
    internal_local: bool
    conditions: dict[int, str]

    def manifest(self, service: Service, number: int) -> str:
        of_family = {f: [pod_address(node, f) for node in self.conditions] for f in FAMILIES}
        text = service.manifest(of_family)
        fields = [
            "externalTrafficPolicy: " + ("Local" if self.external_local else "Cluster"),
            "internalTrafficPolicy: " + ("Local" if self.internal_local else "Cluster"),
            f"healthCheckNodePort: {31990 + service.number}" if self.external_local else "",
        ]
        lines = "".join(f"  {field}\n" for field in fields if field)
        text = text.replace("spec:\n", "spec:\n" + lines, 1)
        text = text.replace(
            "namespace: test}", f'namespace: test, labels: {{state: "{number}"}}}}', 1
        )
        for node, condition in self.conditions.items():
            for family in FAMILIES:
                line = f'- addresses: ["{pod_address(node, family)}"]'
                more = f"\n    nodeName: node{node}\n    conditions: {CONDITIONS[condition]}"
                text = text.replace(line, line + more)
        return text

    def servers(self, client: str, frontend: str) -> set[str]:
        """Who may answer; the empty set: nobody. The internal policy is that of the ClusterIP, the
        external one that of clients outside.
        """
        outside = client == "outside" and self.external_local
        local = self.internal_local if frontend == "ClusterIP" else outside
        nodes = {1} if local else {1, 2}
        for condition in ("ready", "draining"):
            found = {
                SERVERS[n] for n, c in self.conditions.items() if n in nodes and c == condition
            }
            if found:
                return found
        return set()


def random_state(rng: random.Random) -> State:
    conditions = {
        node: rng.choice(("ready", "ready", *CONDITIONS)) for node in SERVERS if rng.random() < 0.8
    }
    return State(rng.random() < 0.4, rng.random() < 0.4, conditions)


@pytest.fixture
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with asked_world(tmp_path_factory.mktemp("random"), "randomnodes") as made:
        made.running()
        yield made


def in_force(w: Asked, states: Sequence[State], number: int) -> bool:
    """The agent has read these files and written what follows from them."""
    tables = w.get("/statedb/dump")["tables"]
    marks = {row["Name"]: row["Labels"].get("state") for row in tables["services"]}
    backends = Counter(row["ServiceName"] for row in tables["backends"])
    return (
        all(marks.get(f"test/{service.name}") == str(number) for service in SERVICES)
        and all(
            backends[f"test/{service.name}"] == 4 * len(state.conditions)
            for service, state in zip(SERVICES, states, strict=True)
        )
        and all(row["Status"]["kind"] == "done" for row in tables["frontends"])
    )


def wrong(w: Asked, service: Service, state: State) -> Iterator[str]:
    """Answers that are not as the model says."""
    for client, asking in w.clients().items():
        for frontend in FRONTENDS:
            if (client, frontend) == ("outside", "ClusterIP"):
                continue  # dropped, which takes time to see
            expected = state.servers(client, frontend) or {"ECONNREFUSED"}
            for family in FAMILIES:
                address, port = service.frontend(frontend, family)
                for proto, kind in KINDS.items():
                    for _ in range(TRIES):
                        try:
                            found = asking(address, port, kind, 3.0)[0]
                        except OSError as error:
                            found = errorcode.get(error.errno or 0, str(error))
                        # A port that was used before continues its flow for as long as the
                        # backend is there: also at one that gets no new flows.
                        going = {SERVERS[n] for n in state.conditions if proto == "udp"}
                        if found not in expected | going:
                            where = f"{client} to {frontend} of {service.name}, IPv{family} {proto}"
                            yield f"{where}: {found}, not {sorted(expected)}"


def test_random_services_are_served_everywhere_as_the_model_says(w: Asked) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    history: list[list[State]] = []
    for number in range(STATES):
        states = [random_state(rng) for _ in SERVICES]
        history.append(states)
        for service, state in zip(SERVICES, states, strict=True):
            w.write(f"{service.name}.yaml", state.manifest(service, number))
        w.eventually(lambda: in_force(w, states, number))  # noqa: B023
        found = [
            text
            for service, state in zip(SERVICES, states, strict=True)
            for text in wrong(w, service, state)
        ]
        refused = w.cilia("bpf", "metrics", "list", f"--bpf-root={w.bpf_root}").stdout
        assert found == [], f"seed {seed}, state {number}: {history[-2:]}\n{refused}"

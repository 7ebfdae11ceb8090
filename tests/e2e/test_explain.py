# SPDX-License-Identifier: Apache-2.0
"""What `cilia lb explain` says of a running agent's maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.manifests import served
from tests.e2e.world import POD_V4, POD_V6, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

V4, V6 = "10.203.0.10", "fd00:203::10"


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("explain"), "explain") as made:
        made.write("echo.yaml", served("echo", V4, POD_V4[:3]))
        made.write("echo6.yaml", served("echo6", V6, POD_V6[:2]))
        made.write("nobody.yaml", served("nobody", "10.203.0.20", []))
        made.start_agent("--bpf-lb-algorithm=maglev", "--bpf-lb-external-clusterip")
        made.eventually(made.ready)
        yield made


def explain(w: World, *arguments: str) -> list[dict[str, Any]]:
    root = f"--bpf-root={w.bpf_root}"
    done = w.cilia("lb", "explain", *arguments, root, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_position_in_the_table_decides_and_is_named(w: World) -> None:
    (answer,) = explain(w, "10.244.9.9:40000", "test/echo:tcp")
    assert (answer["frontend"], answer["outcome"], answer["reason"]) == (
        f"{V4}:80/TCP",
        "backend",
        "maglev",
    )
    assert answer["backends"][0].split(":")[0] in POD_V4[:3]
    assert any("position" in step["said"] for step in answer["steps"])
    assert answer["revision"] > 0


def test_answers_spread_over_the_backends_and_stay_for_a_client(w: World) -> None:
    met = {
        explain(w, f"10.244.9.9:{port}", f"{V4}:80", "--protocol=UDP")[0]["backends"][0]
        for port in range(40000, 40012)
    }
    assert len(met) > 1
    again = [explain(w, "10.244.9.9:40000", f"{V4}:80", "--protocol=tcp") for _ in range(2)]
    assert again[0] == again[1]


def test_the_other_family_has_its_own_frontends(w: World) -> None:
    (answer,) = explain(w, "[fd00::9]:40000", "test/echo6:80", "--protocol=tcp")
    assert answer["frontend"] == f"[{V6}]:80/TCP"
    assert answer["backends"][0].startswith("[fd00:204::")


def test_a_refusal_says_why(w: World) -> None:
    (answer,) = explain(w, "10.244.9.9:40000", "test/nobody:tcp")
    assert (answer["outcome"], answer["reason"]) == ("refused", "no backend")


def test_text_is_one_sentence_and_its_look_ups(w: World) -> None:
    root = f"--bpf-root={w.bpf_root}"
    shown = w.cilia("lb", "explain", "10.244.9.9:40000", "test/echo:tcp", root).stdout.splitlines()
    assert shown[0].startswith(f"{V4}:80/TCP (ClusterIP of test/echo, revision ")
    assert "goes to" in shown[1]
    assert shown[1].endswith(": maglev")
    assert all(line.startswith("    cilia_") for line in shown[2:])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["10.244.9.9", "test/echo"], "is not IP:PORT"),
        (["10.244.9.9:40000", "test/other"], "no frontend of IPv4 matches test/other"),
        (["[fd00::9]:40000", "test/echo"], "no frontend of IPv6 matches test/echo"),
    ],
)
def test_a_wrong_question_gets_one_sentence(w: World, arguments: list[str], says: str) -> None:
    done = w.cilia("lb", "explain", *arguments, f"--bpf-root={w.bpf_root}")
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""Every command that the documentation shows succeeds on an agent that serves the quickstart."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.manifests import served
from tests.e2e.world import REPOSITORY, World, world

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMAND = re.compile(r"^\$ (?:sudo )?cilia (.*?)(?:\s+#.*)?$", re.MULTILINE)
# They run for ever or remove what the others need; the other tests of this folder run them.
ELSEWHERE = ("agent", "cleanup", "monitor", "shell", "quickstart")
# Like `bpf`, these read the kernel's maps.
READ_MAPS = (["lb", "explain"], ["service", "connections"])


def commands() -> list[str]:
    found = {command for page in PAGES for command in COMMAND.findall(page.read_text())}
    return sorted(found)


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("docs"), "docs") as made:
        source = REPOSITORY / "examples/quickstart/echo.yaml"
        made.write("echo.yaml", source.read_text())
        web = served("web", "10.203.0.80", ["10.204.0.1"])
        made.write("web.yaml", web.replace("namespace: test", "namespace: default"))
        objects = tmp_path_factory.mktemp("objects")
        pod_network = ("--pod-network", "--ipam=static", "--ipv4-range=10.206.0.0/24")
        made.start_agent(*pod_network, f"--k8s-objects-dir={objects}")
        made.eventually(made.ready)
        yield made


def test_the_documentation_shows_commands() -> None:
    assert {"status", "db show frontends", "bpf lb list", "cleanup"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_works(w: World, command: str) -> None:
    words = shlex.split(command)
    if words[0] in ELSEWHERE:
        assert w.cilia(words[0], "--help").returncode == 0
        return
    if words[0] == "bpf" or words[:2] in READ_MAPS:
        words.append(f"--bpf-root={w.bpf_root}")
    if "--at-revision" in words:  # which one is kept depends on how busy the agent was
        words[words.index("--at-revision") + 1] = str(revision(w, words[2]))
    done = w.cilia(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(words[0]).name in w.cilia("--help").stdout


def revision(w: World, table: str) -> int:
    """The revision that a table has now."""
    tables = w.get("/status")["tables"]
    return int(next(row["revision"] for row in tables if row["name"] == table))

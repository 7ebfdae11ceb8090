# SPDX-License-Identifier: Apache-2.0
"""What is missing is named in one sentence, with exit code 1 and without a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = str(REPOSITORY / "examples/quickstart")


# Root in name only: what a container without capabilities gives.
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def agent(*arguments: str, under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, sys.executable, "-m", "cilia", "agent", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_source_must_be_named() -> None:
    assert "--k8s-manifests" in refused(agent())


def test_a_source_must_be_a_directory(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert str(missing) in refused(agent(f"--k8s-manifests={missing}"))


def test_an_unknown_option_is_an_error() -> None:
    done = agent("--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


@pytest.mark.root
def test_without_privilege_the_agent_says_to_run_it_as_root(tmp_path: Path) -> None:
    (tmp_path / "bpf").mkdir()
    places = (f"--state-dir={tmp_path / 'state'}", f"--bpf-root={tmp_path / 'bpf'}")
    done = agent(f"--k8s-manifests={QUICKSTART}", *places, under=WITHOUT_CAPABILITIES)
    assert "run as root with CAP_SYS_ADMIN" in refused(done)


@pytest.mark.root
def test_a_cgroup_root_must_be_one(tmp_path: Path) -> None:
    places = (f"--state-dir={tmp_path / 'state'}", "--instance=cilia-test-requirements")
    done = agent(f"--k8s-manifests={QUICKSTART}", f"--cgroup-root={tmp_path}", *places)
    assert "is no cgroup v2 directory" in refused(done)


@pytest.mark.root
def test_a_bpf_root_that_cannot_be_mounted_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    places = (f"--state-dir={tmp_path / 'state'}", f"--bpf-root={file}")
    assert str(file) in refused(agent(f"--k8s-manifests={QUICKSTART}", *places))

# SPDX-License-Identifier: Apache-2.0
"""`cilia agent --dry-run`: no privilege, everything but the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cilia
from tests.e2e.manifests import served

REPOSITORY = Path(cilia.__file__).resolve().parents[1]


def dry_run(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cilia", "agent", f"--k8s-manifests={directory}", "--dry-run"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )


def test_shows_what_would_be_programmed() -> None:
    done = dry_run(REPOSITORY / "examples/quickstart")
    assert done.returncode == 0, done.stderr
    assert "BE: ID=1 ADDR=10.202.0.2:8080/TCP STATE=active\n" in done.stdout
    assert "SVC: ID=1 ADDR=10.201.0.10:80/TCP SLOT=0 " in done.stdout


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    """It reads no device: what it shows is the same on each machine."""
    (tmp_path / "web.yaml").write_text(served("web", "10.203.0.1", ["10.204.0.1"]))
    assert "left out" not in dry_run(tmp_path).stderr
    node_port = served("web", "10.203.0.1", ["10.204.0.1"])
    node_port = node_port.replace("clusterIP:", "type: NodePort\n  clusterIP:", 1)
    node_port = node_port.replace("port: 80", "port: 80, nodePort: 30080", 1)
    (tmp_path / "web.yaml").write_text(node_port)
    done = dry_run(tmp_path)
    assert "ADDR=0.0.0.0:30080/TCP" in done.stdout, done.stderr
    assert "node ports and host ports at the addresses of this node are left out" in done.stderr


def test_refused_input_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(served("good", "10.203.0.1", ["10.204.0.1"]))
    wrong = served("bad", "10.203.0.2", ["10.204.0.1"])
    (tmp_path / "bad.yaml").write_text(wrong.replace("10.204.0.1", "10.204.0.300"))
    (tmp_path / "twice.yaml").write_text(served("twice", "10.203.0.1", ["10.204.0.2"]))
    (tmp_path / "strange.yaml").write_text("kind: Strange\napiVersion: v1\nmetadata: {name: x}\n")
    done = dry_run(tmp_path)
    assert done.returncode == 1
    assert "ADDR=10.203.0.1:80/TCP SLOT=1" in done.stdout
    problems = [line for line in done.stderr.splitlines() if "refused" in line]
    assert any("bad.yaml" in line and "10.204.0.300" in line for line in problems), done.stderr
    assert any("test/twice" in line and "test/good" in line for line in problems), done.stderr
    assert any("strange.yaml" in line and "Strange" in line for line in problems), done.stderr

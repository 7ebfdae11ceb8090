# SPDX-License-Identifier: Apache-2.0
"""Commands whose output nobody takes end with one sentence, and 1."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statedb import DB
from tables.problems import Problem, new_problems_table
from tests.statedb.serving import served


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    db = DB()
    problems = new_problems_table(db)
    with db.write_txn(problems) as wtxn:
        for number in range(5000):
            problems.insert(wtxn, Problem("test", f"message {number}"))
    with served(db, tmp_path / "s") as path:
        yield path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["status", "--help"],
        ["completion", "bash"],
        ["db", "show", "problems", "-o", "json"],
        ["sysdump", "-o", "-", "--bpf-root", "/nowhere"],
        ["agent", "--dry-run", "--k8s-manifests=DIRECTORY"],
    ],
    ids=" ".join,
)
def test_a_command_to_a_full_disk_says_so(
    socket: str, tmp_path: Path, arguments: list[str]
) -> None:
    where = [text.replace("DIRECTORY", str(tmp_path)) for text in arguments]
    (tmp_path / "echo.yaml").write_text(
        "{apiVersion: v1, kind: Service, metadata: {name: echo, namespace: test},"
        " spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}"
    )
    command = [sys.executable, "-m", "cilia", "--socket", socket, *where]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=20,
            env={**os.environ, "PYTHONUNBUFFERED": "1" if "--version" in arguments else ""},
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]


def test_a_reader_that_went_hears_no_complaint(socket: str) -> None:
    command = [sys.executable, "-m", "cilia", "--socket", socket, "db", "show", "problems"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1

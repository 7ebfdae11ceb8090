# SPDX-License-Identifier: Apache-2.0
"""Instance locks: one holder, named by pid, gone with the holder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cilia.linux.lock import AlreadyRunning, InstanceLock, holder_of

HOLD = """
import sys
from pathlib import Path
from cilia.linux.lock import InstanceLock
lock = InstanceLock()
lock.acquire(*map(Path, sys.argv[1:]))
print("held", flush=True)
sys.stdin.read()
"""


def holder(*paths: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout and process.stdout.readline() == b"held\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdin and process.stdout
    process.stdin.close()
    process.stdout.close()


def test_second_holder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    first = holder(shared)
    try:
        with pytest.raises(AlreadyRunning, match=f"pid {first.pid}") as refused:
            InstanceLock().acquire(own, shared)
        assert refused.value.pid == first.pid
        assert holder_of(own) is None, "nothing stays locked after a refusal"
    finally:
        end(first)


def test_lock_is_free_after_its_holder_was_killed(tmp_path: Path) -> None:
    end(holder(tmp_path))
    lock = InstanceLock()
    lock.acquire(tmp_path, tmp_path)
    assert holder_of(tmp_path) == os.getpid()
    lock.release()
    assert holder_of(tmp_path) is None


def test_a_directory_that_is_replaced_is_locked_anew(tmp_path: Path) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    lock = InstanceLock()
    lock.acquire(place, other)
    place.rename(tmp_path / "former")
    assert not lock.holds(place)
    place.mkdir()
    assert not lock.holds(place)
    lock.acquire(place, other)
    assert holder_of(place) == os.getpid()
    assert holder_of(tmp_path / "former") is None
    lock.release()


def test_a_refusal_lets_go_of_nothing_that_was_held_before(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    lock = InstanceLock()
    lock.acquire(mine)
    other = holder(theirs)
    try:
        with pytest.raises(AlreadyRunning):
            lock.acquire(theirs)
        assert lock.holds(mine)
    finally:
        end(other)
        lock.release()

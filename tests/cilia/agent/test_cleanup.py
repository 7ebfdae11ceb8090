# SPDX-License-Identifier: Apache-2.0
"""The state directory of an agent in a container is mounted there: emptied, it stays."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cilia.agent.cleanup import remove_everything
from cilia.agent.config import AgentConfig


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    state = tmp_path / "state"
    (state / "config" / "options-1").mkdir(parents=True)
    (state / "config" / "current").symlink_to("options-1")
    (state / "cilia.sock").touch()
    return AgentConfig(state_dir=state, bpf_root=tmp_path / "bpf")


def refuse(number: int, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """The kernel does not let this directory go."""
    rmdir = Path.rmdir

    def refused(path: Path) -> None:
        if path == directory:
            raise OSError(number, "refused")
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", refused)


def test_all_of_it_goes(config: AgentConfig) -> None:
    assert remove_everything(config) == [str(config.run_dir)]
    assert not config.run_dir.exists()


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EROFS])
def test_a_mounted_directory_is_emptied(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(number, monkeypatch, config.run_dir)
    assert remove_everything(config) == [str(config.run_dir)]
    assert list(config.run_dir.iterdir()) == []


def test_another_refusal_is_told(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(errno.EPERM, monkeypatch, config.run_dir)
    with pytest.raises(PermissionError):
        remove_everything(config)

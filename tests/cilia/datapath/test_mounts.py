# SPDX-License-Identifier: Apache-2.0
"""The record of what the agent mounted, after a crash of the machine or on a full disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cilia.agent.cleanup import remove_everything
from cilia.agent.config import AgentConfig
from cilia.datapath.mounts import RECORD, prepare_bpf_root
from tests.bpf.world import unmount

BROKEN = pytest.mark.parametrize("content", ["", '[["bpf", "/no'], ids=["empty", "cut"])


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    made = AgentConfig(state_dir=tmp_path / "state", bpf_root=tmp_path / "bpf")
    made.run_dir.mkdir(parents=True)
    return made


@BROKEN
def test_cleanup_ends_well_when_the_record_of_mounts_is_broken(
    config: AgentConfig, content: str
) -> None:
    (config.run_dir / RECORD).write_text(content)
    remove_everything(config)
    assert not config.run_dir.exists()


@pytest.fixture
def mounting(config: AgentConfig) -> Iterator[AgentConfig]:
    yield config
    if config.bpf_root.is_mount():
        unmount(config.bpf_root)


@pytest.mark.root
@BROKEN
def test_bpffs_is_mounted_when_the_record_of_mounts_is_broken(
    mounting: AgentConfig, content: str
) -> None:
    (mounting.run_dir / RECORD).write_text(content)
    assert prepare_bpf_root(mounting) == mounting.bpf_root
    assert mounting.bpf_root.is_mount()
    assert json.loads((mounting.run_dir / RECORD).read_text()) == [["bpf", str(mounting.bpf_root)]]

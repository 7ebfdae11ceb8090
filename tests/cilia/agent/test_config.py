# SPDX-License-Identifier: Apache-2.0
"""Options of several features that do not go together."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from cilia.agent.config import AgentConfig
from cilia.program.options import validated


@pytest.mark.parametrize("option", ["k8s_manifests", "lb_state_file"])
@pytest.mark.parametrize("place", ["a.yaml", "deep/er.yaml", "link"])
def test_inputs_may_not_lie_in_the_state_directory(tmp_path: Path, option: str, place: str) -> None:
    """The agent removes what it does not know there, and would read its copies as manifests."""
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir()
    elsewhere.symlink_to(state)
    path = elsewhere / "a.yaml" if place == "link" else state / place
    with pytest.raises(click.UsageError, match="lies in the state directory"):
        validated(AgentConfig, {"state_dir": state, option: path})


@pytest.mark.parametrize("option", ["k8s_manifests", "lb_state_file"])
def test_inputs_may_lie_beside_it(tmp_path: Path, option: str) -> None:
    path = tmp_path / "state-of-others.yaml"
    assert validated(AgentConfig, {"state_dir": tmp_path / "state", option: path})

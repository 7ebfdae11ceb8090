# SPDX-License-Identifier: Apache-2.0
"""Options of several features that do not go together."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from cilia.agent.config import AgentConfig
from cilia.operator.config import OperatorConfig
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


@pytest.mark.parametrize("program", [AgentConfig, OperatorConfig])
def test_no_check_of_a_feature_hides_another_ones(program: type[BaseModel]) -> None:
    """The models of features are joined: of two checks of one name only one would run."""
    owners: dict[str, list[str]] = {}
    for model in program.__mro__:
        decorators = vars(model).get("__pydantic_decorators__")
        if decorators is None:
            continue
        checks = {**decorators.field_validators, **decorators.model_validators}
        for name in checks.keys() & vars(model).keys():
            owners.setdefault(name, []).append(model.__name__)
    assert owners
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}

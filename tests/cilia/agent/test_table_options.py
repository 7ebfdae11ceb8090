# SPDX-License-Identifier: Apache-2.0
"""History and byte budgets of the agent's tables: from the options to the status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bpf.maps.lb import LBMaps
from cilia.agent.budgets import parse_budgets
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.wiring import Agent, build
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.manifests import ManifestSource
from statedb import RevisionGone
from tables.cluster.namespaces import Namespace

MIB = 1 << 20


def agent(directory: Path, **options: Any) -> Agent:
    config = AgentConfig(k8s_manifests=directory, **options)
    return build(
        new_context(config, ManifestSource(directory)), config, MemoryDatapath(LBMaps.fake(64))
    )


def rows(made: Agent) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in made.observation.status.as_dict()["tables"]}


def put(made: Agent, *names: str) -> None:
    namespaces = made.cluster.namespaces
    for name in names:
        with made.ctx.db.write_txn(namespaces) as wtxn:
            namespaces.insert(wtxn, Namespace(name))


def test_past_states_are_kept_as_many_as_the_option_says(tmp_path: Path) -> None:
    made = agent(tmp_path, statedb_history=3)
    db, namespaces = made.ctx.db, made.cluster.namespaces
    put(made, "a", "b", "c", "d")
    assert [row.name for row in namespaces.all(db.read_txn_at(namespaces, 2))] == ["a", "b"]
    with pytest.raises(RevisionGone):
        db.read_txn_at(namespaces, 1)


def test_nothing_of_the_past_is_kept_when_history_is_off(tmp_path: Path) -> None:
    made = agent(tmp_path, statedb_history=0)
    put(made, "a", "b")
    with pytest.raises(RevisionGone):
        made.ctx.db.read_txn_at(made.cluster.namespaces, 1)


def test_every_table_has_a_budget_and_its_size_in_the_status(tmp_path: Path) -> None:
    made = agent(tmp_path, statedb_budget="8,frontends=16")
    put(made, "a")
    status = rows(made)
    assert {row["budget_bytes"] for name, row in status.items() if name != "frontends"} == {8 * MIB}
    assert status["frontends"]["budget_bytes"] == 16 * MIB
    assert status["frontends"]["bytes"] == 0
    assert 100 < status["k8s-namespaces"]["bytes"] < 10_000


def test_tables_that_are_not_named_have_no_budget_when_there_is_none_for_all(
    tmp_path: Path,
) -> None:
    status = rows(agent(tmp_path, statedb_budget="frontends=16"))
    assert status["frontends"]["budget_bytes"] == 16 * MIB
    assert status["backends"]["budget_bytes"] is None


def test_a_budget_for_a_table_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent(tmp_path, statedb_budget="256,fronted=1")
    assert "fronted" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["much", "0", "-1", "=5", "frontends=", "1,2", "a=1,a=2", "1.5"])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r"MIB|twice"):
        AgentConfig(statedb_budget=text)


def test_no_budget_at_all_is_the_empty_text() -> None:
    assert parse_budgets("") == {}

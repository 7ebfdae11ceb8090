# SPDX-License-Identifier: Apache-2.0
"""docs/tables.md is true: each feature of tables and reconcilers has proofs, and they exist."""

from __future__ import annotations

import pytest

from tests.proofs import exists, proofs_of, scripts_without_statement

PROOFS = proofs_of("docs/tables.md")


def test_there_is_a_table() -> None:
    assert len(PROOFS) > 60


@pytest.mark.parametrize("feature", PROOFS)
def test_each_feature_has_proofs_that_exist(feature: str) -> None:
    assert PROOFS[feature]
    assert not [name for name in PROOFS[feature] if not exists(name)]


@pytest.mark.parametrize("folder", ["statedb", "reconcilers"])
def test_every_script_proves_something(folder: str) -> None:
    assert not scripts_without_statement(folder, PROOFS)

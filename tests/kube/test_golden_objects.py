# SPDX-License-Identifier: Apache-2.0
"""Golden scripts on a real API server; all of them: `python -m tests.kube.golden_objects`."""

from __future__ import annotations

import pytest

from .apiserver import ApiServer
from .golden_objects import compare
from .golden_steps import scripts

pytestmark = pytest.mark.timeout(60)

# Script, and whether the API server changes what the script wrote.
CHOSEN = {
    "types-scopes": True,
    "slices-states": False,
    "protocols-families": False,
    "ownership-exchange": False,
    "kinds-without-frontends": False,
    "service": True,
}


@pytest.mark.parametrize("name", CHOSEN)
def test_tables_are_those_of_manifests_after_each_step(server: ApiServer, name: str) -> None:
    (path,) = (path for path in scripts() if path.stem == name)
    outcome = compare(server, path)
    assert not outcome.different
    assert bool(outcome.changed) is CHOSEN[name]
    assert outcome.most["services"] or outcome.most["localredirectpolicies"]

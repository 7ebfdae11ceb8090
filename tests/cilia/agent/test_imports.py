# SPDX-License-Identifier: Apache-2.0
"""An agent loads what it was asked for: the time of its start counts at each restart."""

from __future__ import annotations

import subprocess
import sys

_SHOW = """
import sys
import cilia.agent.run
print(*(name for name in sys.modules if name.startswith(("cilia.", "reconcilers.", "tables."))))
"""


def test_an_agent_without_a_pod_network_loads_none() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _SHOW], capture_output=True, text=True, check=True
    )
    modules = shown.stdout.split()
    assert "cilia.loadbalancer.wiring" in modules
    features = (".endpoints.", ".identity.", ".ipam.", ".masquerade.")
    own = ("cilia.loadbalancer.", "cilia.k8s.")
    loaded = {m for m in modules if any(f in m for f in features) and not m.startswith(own)}
    assert {m.rpartition(".")[2] for m in loaded} == {"options", "state_files"}, loaded

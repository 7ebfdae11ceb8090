# SPDX-License-Identifier: Apache-2.0
"""Which plugin is the network of a cluster's pods, as a parameter of tests."""

from __future__ import annotations

from typing import Final

import pytest

BRIDGE: Final = "bridge"
CILIA: Final = "cilia"
NETWORKS: Final = (BRIDGE, CILIA)

ON_BRIDGE = pytest.mark.parametrize("cluster", [BRIDGE], indirect=True)
ON_CILIA = pytest.mark.parametrize("cluster", [CILIA], indirect=True)

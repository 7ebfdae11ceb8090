# SPDX-License-Identifier: Apache-2.0
"""Frontends and their BPF maps. Start with `frontends.py`."""

from reconcilers.compiled import RECONCILERS
from statedb.compiled import prefer

prefer(RECONCILERS, __name__, __path__)

__all__: list[str] = []

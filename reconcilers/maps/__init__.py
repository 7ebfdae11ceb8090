# SPDX-License-Identifier: Apache-2.0
"""Operations over BPF maps of any feature: `staged.py`, `entries.py`."""

from reconcilers.compiled import RECONCILERS
from statedb.compiled import prefer

prefer(RECONCILERS, __name__, __path__)

__all__: list[str] = []

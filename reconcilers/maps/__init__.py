# SPDX-License-Identifier: Apache-2.0
"""Operations over BPF maps of any feature: `staged.py`, `entries.py`."""

__all__: list[str] = []

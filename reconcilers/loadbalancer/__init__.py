# SPDX-License-Identifier: Apache-2.0
"""Frontends and their BPF maps. Start with `frontends.py`."""

__all__: list[str] = []

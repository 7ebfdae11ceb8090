# SPDX-License-Identifier: Apache-2.0
"""Addresses for the workloads of this node. Start with `allocator.py`."""

__all__: list[str] = []

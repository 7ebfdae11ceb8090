# SPDX-License-Identifier: Apache-2.0
"""Workloads into the map that programs know them by."""

__all__: list[str] = []

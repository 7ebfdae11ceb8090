# SPDX-License-Identifier: Apache-2.0
"""Pods, nodes, namespaces, and how they are watched."""

__all__: list[str] = []

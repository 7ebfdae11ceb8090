# SPDX-License-Identifier: Apache-2.0
"""Tables of the workloads of this node that cilia gives a network."""

__all__: list[str] = []

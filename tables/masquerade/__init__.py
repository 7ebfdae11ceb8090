# SPDX-License-Identifier: Apache-2.0
"""Tables of what packets of this node's workloads to the world leave with."""

__all__: list[str] = []

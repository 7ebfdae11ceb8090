# SPDX-License-Identifier: Apache-2.0
"""Tables of the addresses that this node has given to its workloads."""

__all__: list[str] = []

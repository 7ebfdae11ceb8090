# SPDX-License-Identifier: Apache-2.0
"""The node's network as it is, and as it is wanted."""

__all__: list[str] = []

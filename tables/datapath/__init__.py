# SPDX-License-Identifier: Apache-2.0
"""Programs at hooks, and devices as the programs know them."""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""Routes, devices, addresses, rules and parameters of the kernel."""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""Programs at hooks, network devices. Start with `attachments.py`."""

__all__: list[str] = []

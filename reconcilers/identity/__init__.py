# SPDX-License-Identifier: Apache-2.0
"""What is in force of identities. Start with `ipcache.py`."""

__all__: list[str] = []

# SPDX-License-Identifier: Apache-2.0
"""Which identity is behind which prefix: the writers of the table ``ipcache``, and its commands.

Start with `writer.py`; `wiring.py` says who writes.
"""

__all__: list[str] = []

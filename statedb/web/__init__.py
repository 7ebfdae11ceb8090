# SPDX-License-Identifier: Apache-2.0
"""How other processes see tables: HTTP server, streams, remote database.

Start with `server.py` and `remote.py`.
"""

__all__: list[str] = []

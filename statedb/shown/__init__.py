# SPDX-License-Identifier: Apache-2.0
"""How people see tables: columns, text, YAML, queries, commands.

Start with `columns.py`, then `commands.py`.
"""

__all__: list[str] = []
